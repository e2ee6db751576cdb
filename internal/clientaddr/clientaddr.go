package clientaddr

import (
	"net/netip"
	"slices"
)

// Network describes the namespace in which the server is. The zero value has no gateway.
type Network struct {
	// Gateway4 and Gateway6 are the addresses under which clients appear that cannot appear as themselves; invalid where
	// there is none.
	Gateway4, Gateway6 netip.Addr
	// Own are the addresses of the namespace's interfaces.
	Own []netip.Addr
	// Subnets are the prefixes of the namespace's links.
	Subnets []netip.Prefix
}

// Gateway is the gateway's address of the family of a.
func (n *Network) Gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return n.Gateway4
	}
	return n.Gateway6
}

// Visible reports whether a server at the address server may see a client at the address client as it is.
func (n *Network) Visible(client, server netip.Addr) bool {
	if client.Is4() != server.Is4() || client.IsLoopback() || client.IsUnspecified() || client.IsLinkLocalUnicast() ||
		client == server || client == n.Gateway(client) || slices.Contains(n.Own, client) {
		return false
	}
	return !slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(client) })
}

// Source is the address and port under which server sees client: the client's own, or the gateway's address with the
// client's port. It is invalid where the client cannot be shown as itself and there is no gateway of the server's family.
func (n *Network) Source(client netip.AddrPort, server netip.Addr) netip.AddrPort {
	if n.Visible(client.Addr(), server) {
		return client
	}
	if g := n.Gateway(server); g.IsValid() {
		return netip.AddrPortFrom(g, client.Port())
	}
	return netip.AddrPort{}
}
