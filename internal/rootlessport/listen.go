package rootlessport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// publish opens all ports by listen, or fails; the caller then closes what is open.
func publish(ports []Port, listen func(Port, netip.AddrPort) error) error {
	for _, p := range ports {
		opened := 0
		for _, addr := range p.Listens() {
			err := listen(p, addr)
			if err != nil && !p.Host.IsValid() && addr.Addr().Is6() && noIPv6(err) {
				continue // a host without IPv6: the other family is all there is
			}
			if err != nil {
				return err
			}
			opened++
		}
		if opened == 0 {
			return fmt.Errorf("port %d/%s: no address to listen on", p.HostPort, p.Proto)
		}
	}
	return nil
}

func noIPv6(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// network is package net's name of a protocol over the family of addr alone.
func network(proto string, addr netip.AddrPort) string {
	if addr.Addr().Is4() {
		return proto + "4"
	}
	return proto + "6"
}

func listenTCP(addr netip.AddrPort) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // its sockets do not splice
	l, err := lc.Listen(context.Background(), network("tcp", addr), addr.String())
	if err != nil {
		return nil, nameProto(err, "tcp")
	}
	return l.(*net.TCPListener), nil
}

// nameProto has an error say "listen tcp", as Podman's users know it, rather than "listen tcp4".
func nameProto(err error, proto string) error {
	var op *net.OpError
	if errors.As(err, &op) {
		op.Net = proto
	}
	return err
}

// explainPrivileged adds to an error what Podman's users read about ports that are not theirs to open: those below start.
func explainPrivileged(err error, ports []Port, start uint16) error {
	if !strings.Contains(err.Error(), syscall.EACCES.Error()) { // it may come from a helper, as text
		return err
	}
	for _, p := range ports {
		if p.HostPort < start {
			return fmt.Errorf("cannot expose privileged port %d, you can add 'net.ipv4.ip_unprivileged_port_start=%d' to /etc/sysctl.conf (currently %d), or choose a larger port number (>= %d): %w",
				p.HostPort, p.HostPort, start, start, err)
		}
	}
	return err
}

// unprivilegedStart is the first port that anybody may open; 0 when that is not known.
func unprivilegedStart() uint16 {
	text, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	start, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16)
	return uint16(start)
}

// inContainer is where a port leads. Without an address of the container its own loopback is meant.
func inContainer(child netip.Addr, port uint16) netip.AddrPort {
	if !child.IsValid() {
		child = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(child, port)
}
