package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"rootlessnet/api"
	"rootlessnet/internal/state"
)

// joinedNetwork is the other sandbox of container mode: this one uses its network. The zero value is none.
type joinedNetwork struct {
	lease  *api.Lease // keeps the network until it is closed
	record state.Record
}

// joinNetwork finds a sandbox by name or id and takes a lease on its network. The errors have Docker's words.
func joinNetwork(ctx context.Context, dir *state.Dir, name string, log *slog.Logger) (j joinedNetwork, err error) {
	rec, err := dir.LookupAny(name)
	if errors.Is(err, state.ErrNotFound) {
		return j, fmt.Errorf("No such container: %s", name)
	}
	if err != nil {
		return j, err
	}
	client := api.NewClient(dir.SocketPath(rec))
	defer client.Close()
	if rec.Status == state.Running {
		j.lease, err = client.Lease(ctx, api.LeaseMember)
	}
	if j.lease == nil {
		log.Debug("no lease", "sandbox", rec.Name, "err", err)
		return j, fmt.Errorf("cannot join network namespace of a non running container: %s", name)
	}
	j.record = rec
	return j, nil
}

func (j *joinedNetwork) close() {
	if j.lease != nil {
		_ = j.lease.Close()
	}
}
