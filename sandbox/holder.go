package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rootlessnet/api"
	"rootlessnet/internal/bindaddr"
)

// holderTimeout bounds the questions to the other sandboxes: the answer only improves an error text.
const holderTimeout = time.Second

// nameHolder adds to the error of a host port that is in use which sandbox of the user has it, or that none has. Any other error is
// returned as it is.
func (s *sandbox) nameHolder(err error) error {
	var used *bindaddr.InUseError
	if !errors.As(err, &used) || s.record.dir == nil {
		return err
	}
	records, lerr := s.record.dir.List()
	if lerr != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), holderTimeout)
	defer cancel()
	asked := true
	for _, r := range records {
		if r.ID == s.record.id() {
			continue
		}
		client := api.NewClient(s.record.dir.SocketPath(r))
		box, ierr := client.Inspect(ctx)
		client.Close()
		if ierr != nil {
			asked = false
			continue
		}
		for _, p := range box.Ports {
			same := p.HostIP == used.Addr.Addr() || p.HostIP.Is4() == used.Addr.Addr().Is4() && (p.HostIP.IsUnspecified() || used.Addr.Addr().IsUnspecified())
			if p.Proto == used.Proto && p.HostPort == used.Addr.Port() && same {
				return fmt.Errorf("Bind for %s failed: port is already allocated to sandbox %s: %w", used.Addr, box.Name, errors.Unwrap(used))
			}
		}
	}
	if !asked {
		return err
	}
	return fmt.Errorf("%w by another program", used)
}
