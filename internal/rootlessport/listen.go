package rootlessport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"rootlessnet/internal/bindaddr"
)

// publish opens all ports with listen, or returns an error; the caller then closes those that are open.
func publish(ports []Port, listen func(Port, netip.AddrPort) error) error {
	for _, p := range ports {
		opened := 0
		for _, addr := range p.Listens() {
			err := listen(p, addr)
			if err != nil && !p.Host.IsValid() && addr.Addr().Is6() && bindaddr.NoIPv6(err) {
				continue // the host has no IPv6: IPv4 is enough
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

func listenTCP(addr netip.AddrPort) (*net.TCPListener, error) {
	l, err := bindaddr.ListenTCP(addr)
	if err != nil {
		return nil, nameProto(err, "tcp")
	}
	return l, nil
}

// nameProto makes an error begin with "listen tcp", as Podman's does, and not with "listen tcp4".
func nameProto(err error, proto string) error {
	var op *net.OpError
	if errors.As(err, &op) {
		op.Net = proto
	}
	return err
}

// explain adds Podman's advice about privileged ports to a failure to open some of ports.
func explain(err error, ports []Port) error {
	start, ok := bindaddr.UnprivilegedStart()
	if !ok {
		start = 0 // no port is privileged: the error gets no advice
	}
	numbers := make([]uint16, len(ports))
	for i, p := range ports {
		numbers[i] = p.HostPort
	}
	return bindaddr.PodmanError(err, numbers, start)
}

// inContainer returns the address that a port is forwarded to. If the container's address is invalid, that is its loopback.
func inContainer(child netip.Addr, port uint16) netip.AddrPort {
	if !child.IsValid() {
		child = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(child, port)
}
