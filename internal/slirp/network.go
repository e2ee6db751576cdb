package slirp

import "net/netip"

// The IPv6 network, which no option changes.
var (
	CIDR6    = netip.MustParsePrefix("fd00::/64")
	Gateway6 = netip.MustParseAddr("fd00::2")
	DNS6     = netip.MustParseAddr("fd00::3")
	// Guest6 is the address the TAP gets with Configure, besides the one it makes of router advertisements.
	Guest6 = netip.MustParseAddr("fd00::100")
)
