package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// Further addresses of the host's interface: in the network of the first, and in another one. The kernel makes a temporary one
// beside second6, and prefers it.
var (
	second4, other4 = netip.MustParsePrefix("198.51.100.9/24"), netip.MustParsePrefix("203.0.113.9/24")
	second6, other6 = netip.MustParsePrefix("2001:db8:1::9/64"), netip.MustParsePrefix("fd77::9/64")
)

// manyAddresses gives "here" further addresses, and "there" routes to them.
func (l *lab) manyAddresses() (list []netip.Addr) {
	l.Helper()
	prefixes := []netip.Prefix{second4, other4}
	list = []netip.Addr{topo.Here4, second4.Addr(), other4.Addr()}
	if l.IPv6 {
		prefixes = append(prefixes, second6, other6)
		list = append(list, topo.Here6, second6.Addr(), other6.Addr())
	}
	if l.IPv6 {
		if err := l.Here.Sysctl("ipv6/conf/"+topo.Link+"/use_tempaddr", "2"); err != nil {
			l.Fatal(err)
		}
	}
	for _, p := range prefixes {
		l.addAddress(p)
	}
	if l.IPv6 {
		temporary := l.temporary()
		prefixes, list = append(prefixes, temporary), append(list, temporary.Addr())
	}
	err := l.There.Do(func() error {
		link, err := netlink.LinkByName(topo.Link)
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			a := p.Addr()
			dst := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.Fatal(err)
	}
	return list
}

func (l *lab) addAddress(p netip.Prefix) {
	l.Helper()
	err := l.Here.Do(func() error {
		link, err := netlink.LinkByName(topo.Link)
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if p == second6 {
			a.Flags |= unix.IFA_F_MANAGETEMPADDR
			a.ValidLft, a.PreferedLft = 7200, 3600
		}
		return netlink.AddrAdd(link, a)
	})
	if err != nil {
		l.Fatal(err)
	}
}

// temporary is the temporary address that the host's kernel has made in the network of second6 (RFC 8981).
func (l *lab) temporary() (found netip.Prefix) {
	l.Helper()
	eventually(l.T, 2*time.Second, func() string {
		err := l.Here.Do(func() error {
			link, err := netlink.LinkByName(topo.Link)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			for _, a := range addrs {
				if a.Flags&unix.IFA_F_TEMPORARY != 0 && a.Flags&unix.IFA_F_TENTATIVE == 0 {
					ip, _ := netip.AddrFromSlice(a.IP)
					found = netip.PrefixFrom(ip, second6.Bits())
				}
			}
			return err
		})
		if err != nil || !found.IsValid() {
			return fmt.Sprintf("no temporary address: %v", err)
		}
		return ""
	})
	return found
}

// source is the address that the kernel of a namespace sends from to dst.
func source(t *testing.T, ipRouteGet string) string {
	t.Helper()
	_, rest, found := strings.Cut(ipRouteGet, " src ")
	if !found {
		t.Fatalf("no source in %q", ipRouteGet)
	}
	return strings.Fields(rest)[0]
}

// TestMultihomed: where the host's interface has several addresses, a published port answers on every one of them, from the address
// that was asked, also with a server inside that is bound to none of them. Where the host's
// addresses are copied, the kernel inside prefers the source that the host's does.
func TestMultihomed(t *testing.T) {
	to, toTCP := mapping{"udp", 8081, 81, 0}, mapping{"tcp", 8081, 81, 0}
	for _, f := range forwarders(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if f.datapath != "" {
				l.flags = []string{"--link", f.link, "--datapath", f.datapath}
			}
			addrs := l.manyAddresses()
			p := f.open(l, []mapping{to, toTCP})
			p.forwarder = f
			p.listenUDP(to.inside)
			p.listenTCP(guest.Echo, toTCP.inside)
			ask := func(a netip.Addr) {
				t.Helper()
				if a.Is6() && f.onlyIPv4 {
					return
				}
				c := p.dialUDP(p.There, at(a, to.host)) // connected: what comes from another address is not received
				for range 2 {
					if got := (guest.AskUDP{Text: "hello"}).On(c); !echoed(got) {
						t.Errorf("asked %v: %+v", a, got)
					}
				}
				p.wantAnswer(p.There, at(a, toTCP.host))
			}
			for _, a := range addrs {
				ask(a)
			}
			if f.name != "pasta" {
				return
			}
			for _, dst := range []string{"198.51.100.2", "192.0.2.77", "203.0.113.77", "2001:db8:1::2", "2001:db8:77::77", "fd77::2"} {
				if strings.Contains(dst, ":") && !l.IPv6 {
					continue
				}
				host := l.finish(l.Here.Command("ip", "route", "get", dst)).stdout
				inside := do(p, guest.RunShell{Script: "ip route get " + dst}).Output
				if got, want := source(t, inside), source(t, host); got != want {
					t.Errorf("to %s inside sends from %s, the host from %s", dst, got, want)
				}
			}
			// Changes of the host: a new address is as good.
			added := l.copiedAddress(p)
			ask(added)
			ask(topo.Here4)
		})
	}
}

// copiedAddress gives the host another address while p runs, and waits until it is inside as well.
func (l *lab) copiedAddress(p *publisher) netip.Addr {
	l.Helper()
	added := netip.MustParsePrefix("198.51.100.33/24")
	l.addAddress(added)
	eventually(l.T, 5*time.Second, func() string {
		if out := do(p, guest.RunShell{Script: "ip addr"}).Output; !strings.Contains(out, added.String()) {
			return out
		}
		return ""
	})
	return added.Addr()
}

// TestMultihomedServers: with copied addresses, two servers inside that share a port on different addresses are told apart, also those
// of TCP, on both of its datapaths.
func TestMultihomedServers(t *testing.T) {
	tcp, udp := mapping{"tcp", 8081, 81, 0}, mapping{"udp", 8081, 81, 0}
	for _, datapath := range datapaths {
		t.Run(datapath, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			addrs := l.manyAddresses()
			var flags []string
			if datapath == "stack" {
				flags = []string{"--pcap", filepath.Join(l.runtime, "frames.pcap")} // needs every frame
			}
			p := openPastaWith(l, []mapping{tcp, udp}, flags...)
			for _, a := range addrs[1:] { // each of them on one address only
				do(p, guest.ServeUDP{Addr: a, Port: udp.inside})
				do(p, guest.ServeTCP{Server: guest.Echo, Addr: a, Port: tcp.inside})
			}
			for _, a := range addrs[1:] {
				got := guest.AskUDP{Text: "hello"}.On(p.dialUDP(p.There, at(a, udp.host)))
				if !echoed(got) || a.Is4() && got.Client.Addr() != topo.There4 {
					t.Errorf("asked %v by UDP: %+v", a, got)
				}
				got = p.exchangeFrom(p.There, at(a, tcp.host))
				if !echoed(got) || a.Is4() && got.Client.Addr() != topo.There4 {
					t.Errorf("asked %v by TCP: %+v", a, got)
				}
			}
			// The first address has no server of its own. As long as it is the first of its family, nothing else answers for it.
			c, err := p.There.Dial("tcp", at(addrs[0], tcp.host).String(), opPatience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := (guest.Exchange{Text: "hello"}).On(c); got.Outcome == guest.OK && got.Client.Addr() == topo.There4 {
				t.Errorf("asked %v, which has no server: %+v", addrs[0], got)
			}
			// A new address of the host is told apart as well.
			added := l.copiedAddress(p)
			do(p, guest.ServeTCP{Server: guest.Echo, Addr: added, Port: tcp.inside})
			p.wantAnswer(p.There, at(added, tcp.host))
		})
	}
}
