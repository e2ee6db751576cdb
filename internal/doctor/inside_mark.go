package doctor

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The policy routing of the splice path: packets with the mark are delivered locally, whatever their destination.
const (
	testMark  = 0x64
	testTable = 100
)

// testClient is the address of a transparent socket that represents a client outside (TEST-NET-3, RFC 5737); testServer is an
// address of the sandbox.
var (
	testClient = [4]byte{203, 0, 113, 7}
	testServer = [4]byte{10, 0, 2, 100}
)

func probePolicyRouting() finding {
	if err := routeByMark(); err != nil {
		return failed("rule fwmark and local route", err)
	}
	return okf("a routing rule for a mark and a local route in its table can be added")
}

func routeByMark() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	rule := netlink.NewRule()
	rule.Family = netlink.FAMILY_V4
	rule.Mark = testMark
	rule.Table = testTable
	if err := netlink.RuleAdd(rule); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Table: testTable, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}})
}

const fwmarkAccept = "/proc/sys/net/ipv4/tcp_fwmark_accept"

// probeSysctl sets a sysctl to 1, as is done in a sandbox.
func probeSysctl(path string) finding {
	if err := os.WriteFile("/proc/sys/"+path, []byte("1"), 0); err != nil {
		return failed("write /proc/sys/"+path, err)
	}
	return okf("can be set in the sandbox")
}

// probePacketSocket sends a frame with a mark on lo, as the splice path does to re-inject a SYN.
func probePacketSocket() finding {
	if err := setUp("lo"); err != nil {
		return failed("lo up", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return failed("packet socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, testMark); err != nil {
		return failed("SO_MARK on a packet socket", err)
	}
	const loopback, etherHeader, ipv4 = 1, 14, 0x0008 // ipv4 is ETH_P_IP in network byte order; lo has the index 1
	frame := make([]byte, etherHeader+20)
	frame[12], frame[14] = 8, 4<<4|5
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: loopback}); err != nil {
		return failed("send a frame on lo", err)
	}
	return okf("frames with a mark can be sent on lo")
}

func probeTransparent() finding {
	fd, err := transparentSocket()
	if err != nil {
		return failed("IP_TRANSPARENT and SO_MARK", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: testClient}); err != nil {
		return failed("bind to a foreign address", err)
	}
	return okf("a socket can be bound to a foreign address")
}

// transparentSocket opens a TCP socket that may be bound to any address and sends packets with the mark.
func transparentSocket() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, testMark)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// probeClientAddress tests the features of the splice path together: a server in the namespace accepts a connection from a foreign
// address and sees that address.
func probeClientAddress() finding {
	seen, err := connectAsClient()
	if err != nil {
		return failed("connection from a foreign address", err)
	}
	if seen != testClient {
		return finding{Status: Missing, Detail: fmt.Sprintf("the server saw %v, not the client", net.IP(seen[:]))}
	}
	return okf("a server inside sees the real address of a client")
}

func connectAsClient() (seen [4]byte, err error) {
	if err := routeByMark(); err != nil {
		return seen, fmt.Errorf("routing rule for a mark: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return seen, err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP(testServer[:]), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		return seen, err
	}
	if err := os.WriteFile(fwmarkAccept, []byte("1"), 0); err != nil {
		return seen, fmt.Errorf("tcp_fwmark_accept: %w", err)
	}
	server := &unix.SockaddrInet4{Addr: testServer, Port: 80}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return seen, err
	}
	defer unix.Close(l)
	if err := unix.Bind(l, server); err != nil {
		return seen, fmt.Errorf("bind port 80: %w", err)
	}
	if err := unix.Listen(l, 1); err != nil {
		return seen, err
	}
	c, err := transparentSocket()
	if err != nil {
		return seen, err
	}
	defer unix.Close(c)
	if err := unix.Bind(c, &unix.SockaddrInet4{Addr: testClient, Port: 4444}); err != nil {
		return seen, err
	}
	if err := unix.Connect(c, server); err != nil && err != unix.EINPROGRESS {
		return seen, err
	}
	const handshake = 300 * time.Millisecond // time limit; on lo it takes microseconds
	if err := readable(l, handshake); err != nil {
		return seen, err
	}
	a, from, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return seen, err
	}
	defer unix.Close(a)
	if sa, ok := from.(*unix.SockaddrInet4); ok {
		seen = sa.Addr
	}
	return seen, nil
}
