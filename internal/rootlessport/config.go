package rootlessport

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"path/filepath"
	"strings"
)

// maxConfig is the maximum size in bytes of the document. A mapping has about a hundred bytes, and there are at most 65535 ports.
const maxConfig = 16 << 20

// Config is the JSON document that Podman writes. The names of the fields are Podman's.
type Config struct {
	Mappings    []Mapping
	NetNSPath   string
	ExitFD      int
	ReadyFD     int
	TmpDir      string
	ChildIP     string
	ContainerID string
	RootlessCNI bool
}

// Mapping is one or several consecutive ports of the host and the container.
type Mapping struct {
	HostIP        string `json:"host_ip"`
	ContainerPort uint16 `json:"container_port"`
	HostPort      uint16 `json:"host_port"`
	Range         uint16 `json:"range"`
	Protocol      string `json:"protocol"`
}

// Port is one port to open.
type Port struct {
	Proto     string     // "tcp" or "udp"
	Host      netip.Addr // the zero value: every address of both families
	HostPort  uint16
	ChildPort uint16
}

// Listens returns the addresses that a port is bound to.
func (p Port) Listens() []netip.AddrPort {
	if p.Host.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(p.Host, p.HostPort)}
	}
	return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), p.HostPort), netip.AddrPortFrom(netip.IPv6Unspecified(), p.HostPort)}
}

// ReadConfig reads the document from r and checks it.
func ReadConfig(r io.Reader) (*Config, error) {
	c := &Config{ExitFD: -1, ReadyFD: -1}
	if err := json.NewDecoder(io.LimitReader(r, maxConfig)).Decode(c); err != nil {
		return nil, fmt.Errorf("read the configuration from standard input: %w", err)
	}
	switch {
	case c.NetNSPath == "":
		return nil, errors.New("missing NetNSPath")
	case c.ExitFD <= 0:
		return nil, errors.New("missing ExitFD")
	case c.ReadyFD <= 0:
		return nil, errors.New("missing ReadyFD")
	case c.ExitFD == c.ReadyFD:
		return nil, fmt.Errorf("ExitFD and ReadyFD are both %d", c.ReadyFD)
	case c.RootlessCNI && (c.TmpDir == "" || c.ContainerID == "" || c.ContainerID != filepath.Base(c.ContainerID)):
		return nil, fmt.Errorf("TmpDir %q and ContainerID %q name no socket", c.TmpDir, c.ContainerID)
	}
	if _, err := c.Child(); err != nil {
		return nil, err
	}
	_, err := c.Ports()
	return c, err
}

// Child returns the container's address. The zero value, if the document has none, means the loopback of the namespace.
func (c *Config) Child() (netip.Addr, error) {
	if c.ChildIP == "" {
		return netip.Addr{}, nil
	}
	return parseChild(c.ChildIP)
}

func parseChild(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return a, fmt.Errorf("invalid address of the container: %q", s)
	}
	return a.Unmap(), nil
}

// Socket returns the path of the socket on which Podman sends the container's new address, or "" if Podman does not send one.
func (c *Config) Socket() string {
	if !c.RootlessCNI {
		return ""
	}
	return filepath.Join(c.TmpDir, "rp", c.ContainerID)
}

// Ports returns every port of the mappings, ranges expanded.
func (c *Config) Ports() ([]Port, error) {
	var ports []Port
	for _, m := range c.Mappings {
		var host netip.Addr
		if m.HostIP != "" {
			var err error
			if host, err = netip.ParseAddr(m.HostIP); err != nil || host.Zone() != "" {
				return nil, fmt.Errorf("invalid host IP address: %q", m.HostIP)
			}
			if host = host.Unmap(); host == netip.IPv6Unspecified() {
				host = netip.Addr{} // the original opens one socket for both families
			}
		}
		n := max(m.Range, 1)
		if m.HostPort == 0 || m.ContainerPort == 0 || int(m.HostPort)+int(n)-1 > math.MaxUint16 || int(m.ContainerPort)+int(n)-1 > math.MaxUint16 {
			return nil, fmt.Errorf("invalid port mapping: %d ports from %d of the host to %d of the container", n, m.HostPort, m.ContainerPort)
		}
		protocol := m.Protocol
		if protocol == "" {
			protocol = "tcp"
		}
		for proto := range strings.SplitSeq(protocol, ",") {
			if proto = strings.ToLower(proto); proto != "tcp" && proto != "udp" {
				return nil, fmt.Errorf("unsupported protocol %q: only tcp and udp ports can be published", proto)
			}
			for i := range n {
				ports = append(ports, Port{proto, host, m.HostPort + i, m.ContainerPort + i})
			}
		}
	}
	return ports, nil
}
