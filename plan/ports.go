package plan

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Port is one socket of a published port, as it is bound on the host.
type Port struct {
	Proto     string // "tcp" or "udp"
	HostIP    netip.Addr
	HostPort  uint16
	GuestPort uint16
	GuestIP   netip.Addr // the zero value means the guest's own addresses
	Auto      bool       // opened because of Config.PublishAll
	// ID is the number of the mapping that this socket was opened for. It starts at 1 and is unique for as long as the
	// sandbox exists.
	ID int
}

// Host is the address and port on the host.
func (p Port) Host() netip.AddrPort { return netip.AddrPortFrom(p.HostIP, p.HostPort) }

// Guest is the port inside as Docker writes it: "80/tcp".
func (p Port) Guest() string { return strconv.Itoa(int(p.GuestPort)) + "/" + p.Proto }

// String is the port as docker ps prints it: "0.0.0.0:8080->80/tcp".
func (p Port) String() string { return fmt.Sprintf("%s->%s", p.Host(), p.Guest()) }

// matches reports whether the mapping, taken as a pattern, names a bound port: what the spec leaves out (address, host port) may
// have any value.
func (m PortMapping) matches(bound Port) bool {
	return m.Proto == bound.Proto && m.GuestPort == bound.GuestPort &&
		(!m.HostIP.IsValid() || m.HostIP == bound.HostIP) &&
		(m.Ephemeral() || m.HostPort <= bound.HostPort && bound.HostPort <= m.HostPortEnd)
}

// matchesHost says whether the mapping of a spec with one port only ("8080", "127.0.0.1::8080/udp") names a bound port by its port on
// the host.
func (m PortMapping) matchesHost(bound Port) bool {
	return m.Ephemeral() && m.Proto == bound.Proto && m.GuestPort == bound.HostPort && (!m.HostIP.IsValid() || m.HostIP == bound.HostIP)
}

// SelectPorts returns the bound ports that the mappings name, in the order of bound. The only port of a spec is the guest's or, if
// that is not published, the host's. It is an error if a mapping names none.
func SelectPorts(mappings []PortMapping, bound []Port) ([]Port, error) {
	picked := make([]bool, len(bound))
	for _, m := range mappings {
		found := false
		for _, matches := range []func(Port) bool{m.matches, m.matchesHost} {
			for i, p := range bound {
				if matches(p) {
					picked[i], found = true, true
				}
			}
			if found {
				break
			}
		}
		if !found {
			return nil, fmt.Errorf("port is not published: %s", m)
		}
	}
	var ports []Port
	for i, p := range bound {
		if picked[i] {
			ports = append(ports, p)
		}
	}
	return ports, nil
}

// CheckFree returns an error, in Docker's words, if a bound port occupies the host port of a mapping. Mappings that leave a
// choice of host ports are not compared.
func CheckFree(mappings []PortMapping, bound []Port) error {
	for _, m := range mappings {
		if m.Ephemeral() || m.HostPort != m.HostPortEnd {
			continue
		}
		for _, addr := range m.ListenIPs() {
			for _, p := range bound {
				if p.Proto == m.Proto && p.HostPort == m.HostPort && overlap(addr, p.HostIP) {
					return allocatedError(netip.AddrPortFrom(addr, m.HostPort))
				}
			}
		}
	}
	return nil
}

// overlap reports whether the kernel refuses to bind both addresses with the same port at once.
func overlap(a, b netip.Addr) bool {
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}
