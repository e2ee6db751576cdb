package forwardlab

import (
	"net"
	"net/netip"
	"strings"
	"time"
)

// The network of the tests: the gateway, the guest behind it, and their link.
var (
	Gateway4 = netip.MustParseAddr("10.0.2.2")
	Gateway6 = netip.MustParseAddr("fd00::2")
	// Guest4 and Guest6 have a port, that of a program of the guest.
	Guest4 = netip.MustParseAddrPort("10.0.2.100:4000")
	Guest6 = netip.MustParseAddrPort("[fd00::100]:4000")

	Subnet4 = netip.MustParsePrefix("10.0.2.0/24")
	Subnet6 = netip.MustParsePrefix("fd00::/64")

	GatewayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	GuestMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

const (
	// Patience is how long a test waits for what must happen.
	Patience = 3 * time.Second
	// ResetSoon is how fast a reset must cross, see RaceSlack.
	ResetSoon = 100 * time.Millisecond
	// QuietFor is how long a test waits for what must not happen.
	QuietFor = 50 * time.Millisecond
)

// AP parses an address and port.
func AP(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// LocalAddr is the address of c on this side. c is a connection of TCP.
func LocalAddr(c net.Conn) netip.AddrPort { return c.LocalAddr().(*net.TCPAddr).AddrPort() }

// Repeat is n times the letter x.
func Repeat(n int) string { return strings.Repeat("x", n) }
