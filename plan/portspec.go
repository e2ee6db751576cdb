package plan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"
)

// PortMapping is one published port: connections and datagrams to the host's address and port are forwarded to the guest's
// port.
type PortMapping struct {
	Proto string // "tcp" or "udp"
	// HostIP is the address to listen on; the zero value means every address, IPv4 and IPv6, by two sockets.
	HostIP netip.Addr
	// HostPort and HostPortEnd are the first and last of the ports to choose from: the same for one port, and both
	// 0 for a free one of the kernel's choice (the same number for IPv4 and IPv6).
	HostPort, HostPortEnd uint16
	GuestPort             uint16
	// GuestIP is the address inside; the zero value means the guest's own, of either family. A port spec cannot express it.
	GuestIP netip.Addr
}

// Ephemeral reports whether the kernel chooses the host's port.
func (m PortMapping) Ephemeral() bool { return m.HostPort == 0 }

// String returns the mapping as a port spec that ParsePortSpec reads back.
func (m PortMapping) String() string {
	host := ""
	if !m.Ephemeral() {
		host = strconv.Itoa(int(m.HostPort))
		if m.HostPortEnd != m.HostPort {
			host += "-" + strconv.Itoa(int(m.HostPortEnd))
		}
	}
	if m.HostIP.IsValid() {
		host = net.JoinHostPort(m.HostIP.String(), host)
	}
	return fmt.Sprintf("%s:%d/%s", host, m.GuestPort, m.Proto)
}

// ParsePortSpec reads one port spec as docker run -p takes it:
//
//	[ip:][host[-end]]:ctr[-end][/tcp|udp]    with IPv6 addresses in brackets, or
//	published=HOST,target=CTR[,protocol=tcp|udp][,host_ip=IP][,mode=host]
//
// Docker's own parser reads it, and the errors have its words. A range of guest ports gives one mapping for each. SCTP is
// refused, because the userspace stack does not have it.
func ParsePortSpec(spec string) ([]PortMapping, error) {
	short, err := shortForm(spec)
	if err != nil {
		return nil, err
	}
	parsed, err := nat.ParsePortSpec(short)
	if err != nil {
		return nil, err
	}
	mappings := make([]PortMapping, 0, len(parsed))
	for _, p := range parsed {
		m, err := fromNAT(p, short)
		if err != nil {
			return nil, err
		}
		mappings = append(mappings, m)
	}
	return mappings, nil
}

// ParsePortSpecs reads several specs, and checks that no two of them name the same port of the host, so that the mistake is
// reported before anything is bound. Mappings that leave a choice (a range, an ephemeral port) are not compared: their port is
// chosen when they are bound, which must be after the others.
func ParsePortSpecs(specs []string) ([]PortMapping, error) {
	var all []PortMapping
	for _, spec := range specs {
		m, err := ParsePortSpec(spec)
		if err != nil {
			return nil, err
		}
		all = append(all, m...)
	}
	if err := checkOverlap(all); err != nil {
		return nil, err
	}
	return all, nil
}

// shortForm rewrites the long form; a spec in the short form is returned as it is.
func shortForm(spec string) (string, error) {
	if !strings.Contains(spec, "=") {
		return spec, nil
	}
	params := map[string]string{"protocol": "tcp"}
	for param := range strings.SplitSeq(spec, ",") {
		key, value, ok := strings.Cut(param, "=")
		if !ok || key == "" {
			return "", fmt.Errorf("invalid publish opts format (should be name=value but got '%s')", param)
		}
		switch key {
		case "published", "target", "protocol", "host_ip":
			params[key] = value
		case "mode":
			// Docker's two modes are those of its swarm.
			if value == "ingress" {
				return "", errors.New("unsupported publish mode: ingress (it needs the routing mesh of a swarm; mode=host is what -p does)")
			} else if value != "host" {
				return "", fmt.Errorf("invalid publish mode: %s", value)
			}
		default:
			return "", fmt.Errorf("invalid field key %s", key)
		}
	}
	short := params["published"] + ":" + params["target"] + "/" + params["protocol"]
	if ip := params["host_ip"]; ip != "" {
		if strings.Contains(ip, ":") && !strings.HasPrefix(ip, "[") {
			ip = "[" + ip + "]"
		}
		short = ip + ":" + short
	}
	return short, nil
}

func fromNAT(p nat.PortMapping, spec string) (PortMapping, error) {
	m := PortMapping{Proto: p.Port.Proto()}
	if m.Proto == "sctp" {
		return m, errors.New("unsupported proto: sctp (only tcp and udp can be published)")
	}
	// Docker's parser accepts port 0, on which nothing can listen.
	if p.Port.Int() == 0 {
		return m, errors.New("invalid containerPort: " + guestPart(spec))
	}
	m.GuestPort = uint16(p.Port.Int())

	if ip := p.Binding.HostIP; ip != "" {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return m, errors.New("invalid IP address: " + ip)
		}
		m.HostIP = addr.Unmap()
	}
	if hostPort := p.Binding.HostPort; hostPort != "" {
		first, last, err := nat.ParsePortRange(hostPort)
		// Port 0 means any free port, so a range cannot begin with it.
		if err != nil || first == 0 && isRange(spec) {
			return m, errors.New("invalid hostPort: " + hostPart(spec))
		}
		m.HostPort, m.HostPortEnd = uint16(first), uint16(last)
	}
	return m, nil
}

// guestPart and hostPart are the parts of a spec that an error text repeats.
func guestPart(spec string) string {
	spec = spec[strings.LastIndexByte(spec, ':')+1:]
	port, _, _ := strings.Cut(spec, "/")
	return port
}

func hostPart(spec string) string {
	i := strings.LastIndexByte(spec, ':')
	if i < 0 {
		return ""
	}
	return spec[strings.LastIndexByte(spec[:i], ':')+1 : i]
}

func isRange(spec string) bool {
	first, last, ok := strings.Cut(hostPart(spec), "-")
	return ok && first != last
}

// checkOverlap finds two mappings that cannot both be bound: with the same protocol and host port, and with the same address or
// where one address is the wildcard of the other's family.
func checkOverlap(mappings []PortMapping) error {
	type key struct {
		proto string
		port  uint16
	}
	seen := make(map[key][]netip.Addr, len(mappings))
	for _, m := range mappings {
		if m.Ephemeral() || m.HostPort != m.HostPortEnd {
			continue
		}
		k := key{m.Proto, m.HostPort}
		for _, addr := range m.ListenIPs() {
			for _, other := range seen[k] {
				if overlap(addr, other) {
					return allocatedError(netip.AddrPortFrom(addr, m.HostPort))
				}
			}
			seen[k] = append(seen[k], addr)
		}
	}
	return nil
}

func allocatedError(addr netip.AddrPort) error {
	return fmt.Errorf("Bind for %s failed: port is already allocated", addr)
}

// ListenIPs are the addresses to listen on: HostIP, or the wildcards of both families.
func (m PortMapping) ListenIPs() []netip.Addr {
	if m.HostIP.IsValid() {
		return []netip.Addr{m.HostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}
