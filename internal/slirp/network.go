package slirp

import "net/netip"

// The IPv6 network, which is the same with all options.
var (
	CIDR6    = netip.MustParsePrefix("fd00::/64")
	Gateway6 = netip.MustParseAddr("fd00::2")
	DNS6     = netip.MustParseAddr("fd00::3")
	// Guest6 is the address that the TAP device gets with Configure, besides the one formed from router advertisements.
	Guest6 = netip.MustParseAddr("fd00::100")
)
