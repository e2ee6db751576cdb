package bindaddr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// lowPortFile holds the first port that a process without CAP_NET_BIND_SERVICE may bind.
const lowPortFile = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

// firstUnprivileged is the kernel's default for lowPortFile (PROT_SOCK, include/net/sock.h).
const firstUnprivileged = 1024

// Network is the name that package net has for a protocol ("tcp" or "udp") over the family of addr alone: an IPv6 socket
// of that name does not accept IPv4.
func Network(proto string, addr netip.AddrPort) string {
	if addr.Addr().Is4() {
		return proto + "4"
	}
	return proto + "6"
}

// ListenTCP listens on addr with plain TCP. Package net's default is MPTCP, whose sockets support neither splice(2) nor urgent
// data; MPTCP clients fall back to TCP by themselves.
func ListenTCP(addr netip.AddrPort) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), Network("tcp", addr), addr.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// NoIPv6 reports whether binding an IPv6 address failed because the host has no IPv6: the family is not compiled in or
// disabled (EAFNOSUPPORT), or disabled by net.ipv6.conf.all.disable_ipv6 (EADDRNOTAVAIL).
func NoIPv6(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// UnprivilegedStart reads the first port that a process without CAP_NET_BIND_SERVICE may bind in the caller's network
// namespace. ok is false if it cannot be read; start is then the kernel's default, 1024.
func UnprivilegedStart() (start int, ok bool) { return readStart(lowPortFile) }

func readStart(file string) (start int, ok bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return firstUnprivileged, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16)
	if err != nil {
		return firstUnprivileged, false
	}
	return int(n), true
}

// DockerError describes a failure to bind a port of the host in Docker's words. The errno stays wrapped. A nil err gives nil.
func DockerError(proto string, addr netip.AddrPort, err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	cause := err
	if errors.As(err, &errno) {
		cause = errno
	}
	if errors.Is(err, fs.ErrPermission) && addr.Port() != 0 {
		if low, _ := UnprivilegedStart(); int(addr.Port()) < low {
			return fmt.Errorf("cannot expose privileged port %d, you might need to add "+
				"\"net.ipv4.ip_unprivileged_port_start=0\" (currently %d) to /etc/sysctl.conf, "+
				"or choose a larger port number (>= %d): %w", addr.Port(), low, low, cause)
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return &InUseError{proto, addr}
	}
	return fmt.Errorf("failed to bind host port %s/%s: %w", addr, proto, cause)
}

// InUseError is the DockerError of EADDRINUSE, which it is by errors.Is. It says which port is taken, so that a caller can look for
// its holder.
type InUseError struct {
	Proto string
	Addr  netip.AddrPort
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("failed to bind host port %s/%s: %v", e.Addr, e.Proto, syscall.EADDRINUSE)
}
func (e *InUseError) Unwrap() error { return syscall.EADDRINUSE }

// PodmanError adds Podman's advice to err, a failure to bind some of ports, if one of them is below start, the first
// unprivileged port; start is 0 if that is not known. An err that is not about permission is returned as it is. The test is by the
// text of EACCES, because err may have come from another process as text.
func PodmanError(err error, ports []uint16, start int) error {
	if !strings.Contains(err.Error(), syscall.EACCES.Error()) {
		return err
	}
	for _, port := range ports {
		if int(port) < start {
			return fmt.Errorf("cannot expose privileged port %d, you can add 'net.ipv4.ip_unprivileged_port_start=%d' to /etc/sysctl.conf (currently %d), or choose a larger port number (>= %d): %w",
				port, port, start, start, err)
		}
	}
	return err
}
