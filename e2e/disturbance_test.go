package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// These tests disturb the supervisor, or the host's network, while there are connections.

// TestScorecard39StoppedSupervisor: connections out and in survive a supervisor that is stopped for a while, and new ones
// work afterwards.
func TestScorecard39StoppedSupervisor(t *testing.T) {
	lasts := 3 * time.Second
	if long() {
		lasts = 30 * time.Second
	}
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		const n = 10
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.startServer()
		want(s, guest.Held{Count: n}, guest.Hold{To: guest.To(srv), Count: n})
		in := l.connectTo(l.There, at(topo.Here4, 8080))
		if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lasts)
		if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		s.wantHeldAnswer(n)
		l.wantClientSeenOn(in, "a connection from before")
		s.wantBothWays("afterwards")
	})
}

// TestScorecard40HostNetworkChanges: the host's interface goes down and up, and then its address changes; new connections
// work within two seconds, from the new address.
func TestScorecard40HostNetworkChanges(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.startServer()
		s.wantEchoFrom(topo.Here4, srv)
		onLink := func(change func(link netlink.Link) error) {
			t.Helper()
			if err := l.Here.Do(func() error {
				link, err := netlink.LinkByName(topo.Link)
				if err != nil {
					return err
				}
				return change(link)
			}); err != nil {
				t.Fatal(err)
			}
		}
		defaultRoute := func(link netlink.Link) error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: topo.There4.AsSlice()})
		}
		worksFrom := func(client netip.Addr) {
			t.Helper()
			eventually(t, 2*time.Second, func() string {
				if got := do(s, guest.Exchange{To: guest.To(srv), Text: "hello", Socket: guest.Socket{Timeout: 500 * time.Millisecond}}); !echoed(got) || got.Client.Addr() != client {
					return fmt.Sprintf("out: %+v; want the echo, and the client %v", got, client)
				}
				return ""
			})
			l.wantClientSeen(l.There, at(client, 8080))
		}
		onLink(netlink.LinkSetDown)
		time.Sleep(300 * time.Millisecond)
		onLink(func(link netlink.Link) error {
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
			return defaultRoute(link) // the kernel has removed it
		})
		worksFrom(topo.Here4)
		moved := netip.MustParseAddr("198.51.100.9")
		onLink(func(link netlink.Link) error {
			prefix := func(a netip.Addr) *netlink.Addr {
				return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}}
			}
			if err := netlink.AddrDel(link, prefix(topo.Here4)); err != nil { // and with it the default route
				return err
			}
			if err := netlink.AddrAdd(link, prefix(moved)); err != nil {
				return err
			}
			return defaultRoute(link)
		})
		worksFrom(moved)
	})
}
