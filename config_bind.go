package rootlessnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// lowPortFile holds the first port that an ordinary user may bind.
const lowPortFile = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

// firstUnprivileged is the value of lowPortFile when it cannot be read (PROT_SOCK, include/net/sock.h).
const firstUnprivileged = 1024

// bindError turns the failure to listen on a host's port into the words Docker's users know. The errno stays
// wrapped.
func bindError(proto string, addr netip.AddrPort, err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	cause := err
	if errors.As(err, &errno) {
		cause = errno
	}
	if errors.Is(err, fs.ErrPermission) && addr.Port() != 0 {
		if low := unprivilegedPortStart(lowPortFile); int(addr.Port()) < low {
			return fmt.Errorf("cannot expose privileged port %d, you might need to add "+
				"\"net.ipv4.ip_unprivileged_port_start=0\" (currently %d) to /etc/sysctl.conf, "+
				"or choose a larger port number (>= %d): %w", addr.Port(), low, low, cause)
		}
	}
	return fmt.Errorf("failed to bind host port %s/%s: %w", addr, proto, cause)
}

func unprivilegedPortStart(file string) int {
	text, err := os.ReadFile(file)
	if err != nil {
		return firstUnprivileged
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return firstUnprivileged
	}
	return n
}
