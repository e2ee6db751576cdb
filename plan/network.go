package plan

import (
	"net"
	"net/netip"
)

// NetworkPlan is the guest's network in full, for what Subnet, IP and the like of a Config cannot express. The zero value is
// invalid: at least one address and a gateway of its family are needed. IPv4 is off without an IPv4 gateway, and IPv6 without
// an IPv6 gateway.
type NetworkPlan struct {
	// Addrs are the guest's addresses, each with its on-link prefix length. The first of each family is the one that the kernel
	// inside prefers as its source, where no rule of source address selection decides. Published ports are forwarded to
	// it, but a datagram to an address of the host that is among Addrs is forwarded to that.
	Addrs []netip.Prefix
	// Deprecated are those of Addrs that the guest's kernel is not to choose as the source of new connections, because the host
	// does not either. They have no preferred lifetime and work otherwise like the others.
	Deprecated []netip.Addr
	// Gateway and Gateway6 are the addresses of the gateway on the guest's link, its next hops. The gateway answers ARP and
	// neighbour discovery for them and sends ICMP errors from them. They are also the source address of a client of a published
	// port that the guest cannot see under its own address. They need not lie in the prefix of an address.
	Gateway, Gateway6 netip.Addr
	// GatewayMAC is the gateway's hardware address; nil means one that is made of Gateway.
	GatewayMAC net.HardwareAddr
	// Routes are set up by Configure; nil means a default route by each gateway.
	Routes []Route
	// Special are the addresses with a meaning of their own; a gateway's address may be among them. Any other address means
	// what it means on the host.
	Special []SpecialAddr
	// HostAddresses is set if the guest has addresses of the host or of the host's networks. The gateway then answers ARP and
	// neighbour discovery for all addresses of their prefixes, and connections to them go to the host's real neighbours.
	// Otherwise the prefixes of Addrs are private: an address in them that is neither the guest's nor special is
	// unreachable.
	HostAddresses bool
	// NoTCP, NoUDP and NoICMP drop a protocol in both directions. NoDHCP turns off the DHCP server (of IPv4), NoRA router
	// advertisements, and NoNDP all answers to neighbour discovery.
	NoTCP, NoUDP, NoICMP, NoDHCP, NoRA, NoNDP bool
	// LoopbackToLoopback connects a client of a published port that arrives by the host's loopback to the loopback inside the
	// namespace, with 127.0.0.1 or ::1 as its source. Otherwise it is connected by the link, with the gateway as its source.
	LoopbackToLoopback bool
	// DHCPv6 turns on the DHCPv6 server, which assigns the first IPv6 address.
	DHCPv6 bool
	// Announced is what DHCP and router advertisements say about name resolution; nil means the addresses that answer DNS
	// and Config.DNSSearch.
	Announced *Announced
}

// Announced is the configuration that a guest receives by DHCP or router advertisement.
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
	// DNS has the sandbox's resolver answer port 53, over UDP and TCP, regardless of To.
	DNS bool
	// To is where the other ports are forwarded.
	To SpecialTarget
	// Host is the address on the host that ToHost forwards to.
	Host netip.Addr
}

// SpecialTarget is what happens to connections and datagrams to a SpecialAddr.
type SpecialTarget string

// Values of SpecialTarget.
const (
	// ToRefuse answers as a host without listeners does: a TCP reset or an ICMP port unreachable.
	ToRefuse SpecialTarget = ""
	// ToLoopback forwards to the host: to its loopback on the ports that Config.HostLoopback names, and to its own address on the
	// others.
	ToLoopback SpecialTarget = "loopback"
	// ToHost forwards to SpecialAddr.Host, on every port, even if the policy would refuse that address for its kind.
	ToHost SpecialTarget = "host"
	// ToNetwork forwards to the same address on the host's network.
	ToNetwork SpecialTarget = "network"
	// ToNoRoute answers with ICMP network unreachable.
	ToNoRoute SpecialTarget = "nowhere"
	// ToDrop discards without an answer.
	ToDrop SpecialTarget = "silence"
)
