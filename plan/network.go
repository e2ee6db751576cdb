package plan

import (
	"net"
	"net/netip"
)

// NetworkPlan is the guest's network in full, for a Config whose Subnet, IP and their like cannot say it. Its zero value
// is of no use: at least one address and its gateway are needed. IPv4 is off without an IPv4 gateway, and IPv6 without
// one of its own.
type NetworkPlan struct {
	// Addrs are the guest's addresses, each with the length of the prefix that is on its link. Published ports lead to
	// the first of each family.
	Addrs []netip.Prefix
	// Gateway and Gateway6 are the next hops, that is we. They answer ARP and neighbour discovery, ICMP errors come from
	// them, and a client of a published port that cannot be shown to the guest appears as them. They need not lie in
	// the prefix of an address.
	Gateway, Gateway6 netip.Addr
	// GatewayMAC is our hardware address; nil means one made of Gateway.
	GatewayMAC net.HardwareAddr
	// Routes are set up by Configure; nil means a default route by each gateway.
	Routes []Route
	// Special are the addresses with a meaning of their own, the gateways among them if they have one. Any other
	// address is the one it names.
	Special []SpecialAddr
	// HostAddresses says that the guest bears addresses of the host, or of the host's networks: there is no address
	// translation to hide, its neighbours are the real ones, and we answer for all of them on its link. Otherwise the
	// prefixes of Addrs are private: what is neither the guest's nor special in them is unreachable.
	HostAddresses bool
	// NoTCP, NoUDP and NoICMP drop a protocol in both directions; NoDHCP (of IPv4) and NoRA leave a guest alone that asks for
	// its configuration, and NoNDP answers no neighbour discovery at all.
	NoTCP, NoUDP, NoICMP, NoDHCP, NoRA, NoNDP bool
	// LoopbackToLoopback serves a client of a published port that comes by the host's loopback from the namespace's own
	// loopback, where it appears as 127.0.0.1 or ::1. Otherwise it comes by the link, as the gateway.
	LoopbackToLoopback bool
	// DHCPv6 gives the first IPv6 address to a guest that asks for it by DHCPv6.
	DHCPv6 bool
	// Announced is what DHCP and router advertisements say about names; nil means the addresses that answer DNS, and
	// Config.DNSSearch.
	Announced *Announced
}

// Announced is what a guest is told that asks for its configuration.
type Announced struct {
	DNS    []netip.Addr
	Search []string
	FQDN   string // the guest's full name; Config.Hostname is the short one
}

// Route is one route inside the guest's namespace, by the uplink.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // the zero value: Dst is on the link
	Source  netip.Addr // preferred source address; the zero value: the kernel's choice
	Metric  int
	MTU     int // the zero value: that of the link
}

// SpecialAddr gives an address a meaning of its own.
type SpecialAddr struct {
	Addr netip.Addr
	// DNS has port 53 answered by the sandbox's resolver, over UDP and TCP, whatever To says.
	DNS bool
	// To is what the other ports are.
	To SpecialTarget
	// Host is the address of the host's network that ToHost means.
	Host netip.Addr
}

// SpecialTarget is what is behind a SpecialAddr.
type SpecialTarget string

// Values of SpecialTarget.
const (
	// Refuse refuses: the address is there, and nothing listens on it.
	Refuse SpecialTarget = ""
	// ToLoopback leads to the host's loopback, on the ports that Config.HostLoopback names.
	ToLoopback SpecialTarget = "loopback"
	// ToHost leads to SpecialAddr.Host, on every port, without regard to what is closed by its kind.
	ToHost SpecialTarget = "host"
	// ToNetwork leads where the address leads by itself.
	ToNetwork SpecialTarget = "network"
	// NoRoute answers that the network is unreachable.
	NoRoute SpecialTarget = "nowhere"
	// Drop answers nothing.
	Drop SpecialTarget = "silence"
)
