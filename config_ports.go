package rootlessnet

import (
	"net/netip"

	"rootlessnet/api"
)

// matches says whether a bound port is one that the mapping, taken as a pattern, names: what the spec leaves out
// (address, host port) may be anything.
func (m PortMapping) matches(bound api.Port) bool {
	return m.Proto == bound.Proto && m.GuestPort == bound.GuestPort &&
		(!m.HostIP.IsValid() || m.HostIP == bound.HostIP) &&
		(m.Ephemeral() || m.HostPort <= bound.HostPort && bound.HostPort <= m.HostPortEnd)
}

// selectPorts finds what a spec names among the bound ports. Each of its mappings must name one at least; the error
// is an *api.Error.
func selectPorts(spec string, bound []api.Port) ([]api.Port, error) {
	mappings, err := ParsePortSpec(spec)
	if err != nil {
		return nil, api.Invalid(err)
	}
	picked := make([]bool, len(bound))
	for _, m := range mappings {
		found := false
		for i, p := range bound {
			if m.matches(p) {
				picked[i], found = true, true
			}
		}
		if !found {
			return nil, api.NotFound(&portNotPublished{m})
		}
	}
	var ports []api.Port
	for i, p := range bound {
		if picked[i] {
			ports = append(ports, p)
		}
	}
	return ports, nil
}

type portNotPublished struct{ PortMapping }

func (e *portNotPublished) Error() string { return "port is not published: " + e.String() }

// checkFree returns an error in the words of a start if one of the bound ports is in the way of a mapping.
func checkFree(mappings []PortMapping, bound []api.Port) error {
	for _, m := range mappings {
		if m.Ephemeral() || m.HostPort != m.HostPortEnd {
			continue
		}
		for _, addr := range m.listenIPs() {
			for _, p := range bound {
				if p.Proto == m.Proto && p.HostPort == m.HostPort && overlap(addr, p.HostIP) {
					return api.Conflict(allocatedError(netip.AddrPortFrom(addr, m.HostPort)))
				}
			}
		}
	}
	return nil
}

// overlap says whether two addresses cannot be listened on at once with the same port.
func overlap(a, b netip.Addr) bool {
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}
