package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// hostNames are the names of the host inside, and one that the test adds.
var hostNames = []string{"host.docker.internal", "host.containers.internal", "server.example"}

// byGateway are the gateway's addresses, of the families that the lab has.
func byGateway(l *lab) []netip.Addr {
	if l.IPv6 {
		return []netip.Addr{gateway4, gateway6}
	}
	return []netip.Addr{gateway4}
}

// TestGatewayToHost: by the gateway's addresses and by the host's names the sandbox reaches what listens on all addresses of the host
// or on the one of its network, its own and another sandbox's published ports among it; not what listens on the loopback alone.
func TestGatewayToHost(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		everywhere := netip.IPv6Unspecified()
		open, _ := l.serve(l.Here, at(everywhere, 0), guest.Echo)
		openUDP, _ := l.serveUDP(l.Here, at(everywhere, 0))
		own, _ := l.serve(l.Here, at(topo.Here4, 0), guest.Echo)
		closed, reached := l.serve(l.Here, at(loopback4, 0), guest.Echo)
		closedUDP, reachedUDP := l.serveUDP(l.Here, at(loopback4, 0))
		other := l.start("-p", "9090:80", "-p", "9091:81/udp")
		other.listenTCP(guest.Echo, 80)
		other.listenUDP(81)
		s := l.start("-p", "8080:80", "-p", "8081:81/udp", "--add-host", "server.example:host-gateway")
		s.listenTCP(guest.Echo, 80)
		s.listenUDP(81)
		for _, gateway := range byGateway(l) {
			for _, port := range []uint16{open.Port(), own.Port(), 9090, 8080} {
				s.wantEcho(at(gateway, port))
			}
			for _, port := range []uint16{openUDP.Port(), 9091, 8081} {
				if got := s.askUDP(at(gateway, port), "hello", 0); !echoed(got) {
					t.Errorf("UDP port %d of %v: %+v", port, gateway, got)
				}
			}
			s.wantConnectTo(guest.Refused, guest.Target{Host: gateway.String(), Port: closed.Port()}, 0)
			if got := s.askUDP(at(gateway, closedUDP.Port()), "hello", 500*time.Millisecond); got.Outcome != guest.Refused && got.Outcome != guest.TimedOut {
				t.Errorf("UDP to a port of the loopback by %v: %+v", gateway, got)
			}
		}
		for _, name := range hostNames {
			if got := do(s, guest.Exchange{To: guest.Target{Host: name, Port: open.Port()}, Text: "hello"}); !echoed(got) {
				t.Errorf("by %s: %+v", name, got)
			}
			s.wantConnectTo(guest.Refused, guest.Target{Host: name, Port: closed.Port()}, 0)
		}
		if reached.count() != 0 || reachedUDP.count() != 0 {
			t.Error("the host's loopback was reached")
		}
	})
}

// TestGatewayToHostMoves: the host changes its address, has none but loopback ones, and gets one again.
func TestGatewayToHostMoves(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		open, _ := l.serve(l.Here, at(netip.IPv6Unspecified(), 0), guest.Echo)
		openUDP, _ := l.serveUDP(l.Here, at(netip.IPv6Unspecified(), 0))
		s := l.start()
		reached := func(want bool) {
			t.Helper()
			for _, gateway := range byGateway(l) {
				eventually(t, 5*time.Second, func() string {
					tcp := do(s, guest.Exchange{To: guest.Target{Host: gateway.String(), Port: open.Port()}, Text: "hello"})
					udp := s.askUDP(at(gateway, openUDP.Port()), "hello", 300*time.Millisecond)
					if echoed(tcp) != want || echoed(udp) != want || !want && tcp.Outcome != guest.Refused {
						return fmt.Sprintf("by %v: TCP %+v, UDP %+v", gateway, tcp, udp)
					}
					return ""
				})
			}
		}
		reached(true)
		had := hostAddresses(l)
		for _, a := range had {
			if err := l.Here.Do(func() error { return netlink.AddrDel(a.link, &a.Addr) }); err != nil {
				t.Fatal(err)
			}
		}
		reached(false)
		moved := had[0]
		moved.Addr = netlink.Addr{IPNet: netlink.NewIPNet([]byte{203, 0, 113, 77})}
		if err := l.Here.Do(func() error { return netlink.AddrAdd(moved.link, &moved.Addr) }); err != nil {
			t.Fatal(err)
		}
		reached(true)
	})
}

// hostAddress is an address of "here" other than lo's.
type hostAddress struct {
	netlink.Addr
	link netlink.Link
}

func hostAddresses(l *lab) (list []hostAddress) {
	l.Helper()
	err := l.Here.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if a.Scope == int(netlink.SCOPE_UNIVERSE) && !a.IP.IsLoopback() {
					list = append(list, hostAddress{a, link})
				}
			}
		}
		return nil
	})
	if err != nil || len(list) == 0 {
		l.Fatalf("addresses of the host: %v, %v", list, err)
	}
	return list
}
