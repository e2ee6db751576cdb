package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests of this file run in a user and network namespace of their own ("here"), with a router behind a veth in a
// second one. Neither needs a privilege.
const inNetns = "FORWARDER_TEST_NETNS"

var (
	here4, router4 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	here6, router6 = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")
	other4         = netip.MustParseAddr("198.51.100.3") // also here
	other6         = netip.MustParseAddr("2001:db8:1::3")
)

const (
	narrowMTU = 1280 // of the network behind the router
	wideMTU   = 1500 // of the veth
)

// network is what a test of this file gets: it runs in "here".
type network struct {
	router chan func() // run on the router's thread
}

// inRouter runs fn in the router's namespace.
func (n *network) inRouter(t testing.TB, fn func() error) {
	t.Helper()
	done := make(chan error)
	n.router <- func() { done <- fn() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// listen makes a socket of the router's.
func (n *network) listen(t testing.TB, addr string) (h *host) {
	n.inRouter(t, func() error { h = listenHost(t, addr); return nil })
	return h
}

// enterNetns returns the network on the inside, and nil on the outside, after the inside has run.
func enterNetns(t *testing.T) *network {
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
		case os.Getenv("ROOTLESSNET_CI") == "1":
			t.Fatalf("no user namespace: %v", err)
		default:
			t.Skipf("NOT RUN: no user namespace: %v", err)
		}
	}
	n := &network{router: make(chan func())}
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
func (n *network) runRouter(ready chan<- error) {
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

func (n *network) build(t testing.TB) error {
	tid := 0
	n.inRouter(t, func() error { tid = unix.Gettid(); return nil })
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0", MTU: wideMTU}, PeerName: "lan0",
		PeerNamespace: netlink.NsPid(tid)}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	n.inRouter(t, func() error {
		return errors.Join(up("lo"), up("lan0", router4, router6),
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "narrow", MTU: narrowMTU}, PeerName: "end"}), up("end"), up("narrow"),
			sysctl("ipv4/ip_forward", "1"), sysctl("ipv6/conf/all/forwarding", "1"),
			sysctl("ipv4/icmp_ratemask", "0"), sysctl("ipv6/icmp/ratelimit", "0"),
			route("203.0.113.0/24", "narrow", 0), route("2001:db8:203::/48", "narrow", 0),
			route("198.18.1.0/24", "", unix.RTN_UNREACHABLE), route("198.18.2.0/24", "", unix.RTN_PROHIBIT),
			route("2001:db8:bad::/48", "", unix.RTN_UNREACHABLE), route("2001:db8:f0::/48", "", unix.RTN_PROHIBIT))
	})
	err := errors.Join(up("lo"), up("lan0", here4, here6, other4, other6),
		route("192.0.2.0/24", "", unix.RTN_PROHIBIT), route("192.88.99.0/24", "", unix.RTN_UNREACHABLE))
	for _, dst := range []string{"198.18.0.0/15", "203.0.113.0/24", "2001:db8:203::/48", "2001:db8:bad::/48", "2001:db8:f0::/48"} {
		err = errors.Join(err, route(dst, "lan0", 0))
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

// route adds a route by the router ("lan0"), to a link, or of a special type.
func route(dst, link string, typ int) error {
	p := netip.MustParsePrefix(dst)
	r := netlink.Route{Dst: prefix(p.Addr(), p.Bits()), Type: typ}
	if link != "" {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		r.LinkIndex = l.Attrs().Index
		if link == "lan0" {
			if r.Gw = router4.AsSlice(); p.Addr().Is6() {
				r.Gw = router6.AsSlice()
			}
		}
	}
	if err := netlink.RouteAdd(&r); err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	return nil
}

// sysctl sets a parameter under net/ of the namespace of the thread it runs on.
func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// settleND waits until a datagram crosses in both families: a fresh link has no IPv6 route for a moment.
func (n *network) settleND(t testing.TB) {
	t.Helper()
	for _, a := range []netip.Addr{router4, router6} {
		h := n.listen(t, netip.AddrPortFrom(a, 0).String())
		for end := time.Now().Add(patience); ; {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(h.addr))
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

// linkLocal returns the link-local address of an interface of the namespace it runs in.
func linkLocal(t testing.TB, name string) netip.Addr {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
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

func repeat(n int) string { return strings.Repeat("x", n) }
