package procnet

import (
	"fmt"
	"os"
	"sync"
)

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

// Contains reports whether the range includes p.
func (r PortRange) Contains(p uint16) bool { return p >= r.First && p <= r.Last }

// defaultLocalPorts is what Linux begins with (net/ipv4/af_inet.c, inet_init_net).
var defaultLocalPorts = PortRange{32768, 60999}

// LocalPorts is the range from which the kernel chooses the ports of clients in the network namespace of this process
// (net.ipv4.ip_local_port_range), read once. Where it cannot be read it is Linux's default, and known is false.
func LocalPorts() (r PortRange, known bool) { return localPorts() }

var localPorts = sync.OnceValues(func() (PortRange, bool) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return defaultLocalPorts, false
	}
	var r PortRange
	if _, err := fmt.Sscan(string(text), &r.First, &r.Last); err != nil {
		return defaultLocalPorts, false
	}
	return r, true
})
