package forwardlab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/skip"
)

// inNetns is set in the environment of a test that runs inside, see EnterNetns.
const inNetns = "FORWARDER_TEST_NETNS"

// Addresses of the namespaces of EnterNetns: of this one, of the router, and further ones of this one.
var (
	Here4, Router4 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	Here6, Router6 = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")
	Other4         = netip.MustParseAddr("198.51.100.3") // also here
	Other6         = netip.MustParseAddr("2001:db8:1::3")
)

// MTUs of the links of EnterNetns.
const (
	NarrowMTU = 1280 // of the network behind the router
	WideMTU   = 1500 // of the veth
)

// Network is a user and network namespace of the test's own ("here"), with a router behind a veth in a second network
// namespace. Neither needs a privilege.
type Network struct {
	router chan func() // run on the router's thread
}

// InRouter runs fn in the router's namespace.
func (n *Network) InRouter(t testing.TB, fn func() error) {
	t.Helper()
	done := make(chan error)
	n.router <- func() { done <- fn() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ListenUDP is a socket of the router.
func (n *Network) ListenUDP(t testing.TB, addr string) (h *Host) {
	n.InRouter(t, func() error { h = ListenUDP(t, addr); return nil })
	return h
}

// EnterNetns returns the network on the inside, and nil on the outside, after the inside has run.
func EnterNetns(t *testing.T) *Network {
	t.Helper()
	if os.Getenv(inNetns) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v="+fmt.Sprint(testing.Verbose()))
		cmd.Env = append(os.Environ(), inNetns+"=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &exit):
			t.Fatalf("inside: %v\n%s", err, out.Bytes())
		default:
			skip.Missing(t, "no user namespace: %v", err)
		}
	}
	n := &Network{router: make(chan func())}
	ready := make(chan error)
	go n.runRouter(ready)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	if err := n.build(t); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.router) })
	return n
}

// runRouter keeps a thread in a network namespace of its own; the thread, and with it the namespace, ends at the end.
func (n *Network) runRouter(ready chan<- error) {
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	ready <- err
	if err != nil {
		return
	}
	for fn := range n.router {
		fn()
	}
}

func prefix(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

func (n *Network) build(t testing.TB) error {
	tid := 0
	n.InRouter(t, func() error { tid = unix.Gettid(); return nil })
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0", MTU: WideMTU}, PeerName: "lan0",
		PeerNamespace: netlink.NsPid(tid)}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	n.InRouter(t, func() error {
		return errors.Join(up("lo"), up("lan0", Router4, Router6),
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "narrow", MTU: NarrowMTU}, PeerName: "end"}), up("end"), up("narrow"),
			Sysctl("ipv4/ip_forward", "1"), Sysctl("ipv6/conf/all/forwarding", "1"),
			Sysctl("ipv4/icmp_ratemask", "0"), Sysctl("ipv6/icmp/ratelimit", "0"),
			Route("203.0.113.0/24", "narrow", 0), Route("2001:db8:203::/48", "narrow", 0),
			Route("198.18.1.0/24", "", unix.RTN_UNREACHABLE), Route("198.18.2.0/24", "", unix.RTN_PROHIBIT),
			Route("2001:db8:bad::/48", "", unix.RTN_UNREACHABLE), Route("2001:db8:f0::/48", "", unix.RTN_PROHIBIT))
	})
	err := errors.Join(up("lo"), up("lan0", Here4, Here6, Other4, Other6),
		Route("192.0.2.0/24", "", unix.RTN_PROHIBIT), Route("192.88.99.0/24", "", unix.RTN_UNREACHABLE))
	for _, dst := range []string{"198.18.0.0/15", "203.0.113.0/24", "2001:db8:203::/48", "2001:db8:bad::/48", "2001:db8:f0::/48"} {
		err = errors.Join(err, Route(dst, "lan0", 0))
	}
	return err
}

func up(name string, addrs ...netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: prefix(a, bits), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// Route adds a route by the router ("lan0"), to a link, or of a special type.
func Route(dst, link string, typ int) error {
	p := netip.MustParsePrefix(dst)
	r := netlink.Route{Dst: prefix(p.Addr(), p.Bits()), Type: typ}
	if link != "" {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		r.LinkIndex = l.Attrs().Index
		if link == "lan0" {
			if r.Gw = Router4.AsSlice(); p.Addr().Is6() {
				r.Gw = Router6.AsSlice()
			}
		}
	}
	if err := netlink.RouteAdd(&r); err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	return nil
}

// Sysctl sets a parameter under net/ of the namespace of the thread it runs on.
func Sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// SettleND waits until a datagram crosses in both families: a fresh link has no IPv6 route for a moment.
func (n *Network) SettleND(t testing.TB) {
	t.Helper()
	for _, a := range []netip.Addr{Router4, Router6} {
		h := n.ListenUDP(t, netip.AddrPortFrom(a, 0).String())
		for end := time.Now().Add(Patience); ; {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(h.At))
			if err == nil {
				_, err = c.Write([]byte("x"))
				_ = c.Close()
			}
			if err == nil {
				_ = h.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if _, _, err = h.ReadFromUDPAddrPort(make([]byte, 1)); err == nil {
					break
				}
			}
			if time.Now().After(end) {
				t.Fatalf("%v: %v", a, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// LinkLocal returns the link-local address of an interface of the namespace it runs in.
func LinkLocal(t testing.TB, name string) netip.Addr {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if ip, _ := netip.AddrFromSlice(a.IP); ip.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return ip
			}
		}
	}
	t.Fatal("no link-local address")
	return netip.Addr{}
}

// Listen is a TCP listener of the router.
func (n *Network) Listen(t testing.TB, addr netip.AddrPort) (l *net.TCPListener) {
	t.Helper()
	n.InRouter(t, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Call connects from the router.
func (n *Network) Call(t testing.TB, addr netip.AddrPort) (c *net.TCPConn) {
	t.Helper()
	n.InRouter(t, func() (err error) {
		c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}
