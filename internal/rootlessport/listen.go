package rootlessport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"rootlessnet/internal/bindaddr"
)

// publish opens all ports by listen, or fails; the caller then closes what is open.
func publish(ports []Port, listen func(Port, netip.AddrPort) error) error {
	for _, p := range ports {
		opened := 0
		for _, addr := range p.Listens() {
			err := listen(p, addr)
			if err != nil && !p.Host.IsValid() && addr.Addr().Is6() && bindaddr.NoIPv6(err) {
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

func listenTCP(addr netip.AddrPort) (*net.TCPListener, error) {
	l, err := bindaddr.ListenTCP(addr)
	if err != nil {
		return nil, nameProto(err, "tcp")
	}
	return l, nil
}

// nameProto has an error say "listen tcp", as Podman's users know it, rather than "listen tcp4".
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
		start = 0 // without advice
	}
	numbers := make([]uint16, len(ports))
	for i, p := range ports {
		numbers[i] = p.HostPort
	}
	return bindaddr.PodmanError(err, numbers, start)
}

// inContainer is where a port leads. Without an address of the container its own loopback is meant.
func inContainer(child netip.Addr, port uint16) netip.AddrPort {
	if !child.IsValid() {
		child = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(child, port)
}
