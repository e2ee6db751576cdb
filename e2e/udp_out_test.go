package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// uplinks are the forwarders that carry what leaves a namespace, each once for every link that it can have: for datagrams the
// datapath of TCP makes no difference.
func uplinks(t *testing.T) (list []*forwarder) {
	t.Helper()
	for _, f := range forwarders(t) {
		if f.datapath != "stack" && !strings.HasPrefix(f.name, "rootlessport") && f.name != "RootlessKit's API" {
			list = append(list, f)
		}
	}
	return list
}

// onEveryUplink runs test with a namespace connected in each way, all of them at the same time.
func onEveryUplink(t *testing.T, flags []string, test func(t *testing.T, p *publisher)) {
	for _, f := range uplinks(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if f.datapath != "" {
				l.flags = []string{"--link", f.link, "--datapath", f.datapath}
			}
			l.flags = append(l.flags, flags...)
			p := f.open(l, nil)
			p.forwarder = f
			test(t, p)
		})
	}
}

// listenPacket is a socket of a namespace.
func (l *lab) listenPacket(ns *topo.NS, addr netip.AddrPort) *net.UDPConn {
	l.Helper()
	c, err := ns.ListenPacket("udp", addr.String())
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// answerFromElsewhere answers each datagram from three sockets: the one that it came to, another port of the same address, and
// another address. It returns where it listens, which is not the host's router: with pasta that stands for the host.
func (l *lab) answerFromElsewhere(f family) netip.AddrPort {
	l.Helper()
	asked, port, address := l.listenPacket(l.There, at(f.there2, 0)), l.listenPacket(l.There, at(f.there2, 0)), l.listenPacket(l.There, at(f.there, 0))
	go func() {
		b := make([]byte, 99)
		for {
			_, from, err := asked.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = address.WriteToUDPAddrPort([]byte("address"), from)
			_, _ = port.WriteToUDPAddrPort([]byte("port"), from)
			_, _ = asked.WriteToUDPAddrPort([]byte("asked"), from)
		}
	}()
	return asked.LocalAddr().(*net.UDPAddr).AddrPort()
}

// answersFromElsewhere are the texts that come inside, in the order of the alphabet. Each must come from where it was sent.
func (p *publisher) answersFromElsewhere(f family) string {
	p.Helper()
	var texts []string
	for _, a := range do(p, guest.Seek{To: p.answerFromElsewhere(f), Text: "x", Answers: 3, Timeout: 700 * time.Millisecond}) {
		texts = append(texts, a.Text)
		from := f.there2
		if a.Text == "address" {
			from = f.there
		}
		if a.From.Addr() != from {
			p.Errorf("%q came from %v, want %v", a.Text, a.From, from)
		}
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}

// TestUDPAnswersFromElsewhere: what another port of an address that was asked sends comes in, as a TFTP server's data does. What
// another address sends comes in with full-cone filtering, which slirp4netns and pasta have always had.
func TestUDPAnswersFromElsewhere(t *testing.T) {
	onEveryUplink(t, nil, func(t *testing.T, p *publisher) {
		want := "asked port"
		if p.forwarder.name == "slirp4netns" || p.forwarder.name == "pasta" {
			want = "address asked port"
		}
		for _, f := range p.families() {
			if got := p.answersFromElsewhere(f); got != want {
				t.Errorf("asked %v: answers %q, want %q", f.there2, got, want)
			}
		}
	})
}

func TestUDPFullCone(t *testing.T) {
	l := newLab(t)
	l.flags = []string{"--udp-full-cone"}
	for name, open := range map[string]func(*lab, []mapping) *publisher{"rootless-run": openRun, "attach": openAttach} {
		p := open(l, nil)
		for _, f := range l.families() {
			if got, want := p.answersFromElsewhere(f), "address asked port"; got != want {
				t.Errorf("%s, asked %v: answers %q, want %q", name, f.there, got, want)
			}
		}
	}
}

// group is a socket that has joined a multicast group by the interface ifName of its namespace, and answers each datagram with
// the TTL that it came with. count is how many came.
func (l *lab) group(ns *topo.NS, ifName string, group netip.AddrPort) *accepts {
	l.Helper()
	a := &accepts{}
	err := ns.Do(func() error {
		link, err := net.InterfaceByName(ifName)
		if err != nil {
			return err
		}
		c, err := net.ListenMulticastUDP("udp", link, net.UDPAddrFromAddrPort(group))
		if err != nil {
			return err
		}
		l.Cleanup(func() { c.Close() })
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		level, name := unix.IPPROTO_IP, unix.IP_RECVTTL
		if group.Addr().Is6() {
			level, name = unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT
		}
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, name, 1) }); err != nil || failed != nil {
			return fmt.Errorf("%v, %v", err, failed)
		}
		go func() {
			b, oob := make([]byte, 99), make([]byte, 99)
			for {
				_, n, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
				if err != nil {
					return
				}
				a.add()
				ttl := "no TTL"
				if msgs, err := unix.ParseSocketControlMessage(oob[:n]); err == nil && len(msgs) > 0 {
					ttl = fmt.Sprint(msgs[0].Data[0]) // of a little-endian int, or in part
				}
				_, _ = c.WriteToUDPAddrPort([]byte(ttl), from)
			}
		}()
		return nil
	})
	if err != nil {
		l.Fatal(err)
	}
	return a
}

// linkLocal is the link-local address of a namespace's end of the link.
func (l *lab) linkLocal(ns *topo.NS) (found netip.Addr) {
	l.Helper()
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(topo.Link)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() {
				found, _ = netip.AddrFromSlice(a.IP)
			}
		}
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	return found
}

// TestMulticastOut: what is sent inside to the group of a discovery protocol reaches its members on the host's network, with the
// TTL that it was given, and their answers come in. The host's own members get nothing.
func TestMulticastOut(t *testing.T) {
	type discovery struct {
		group string
		ttl   int
	}
	cases := []discovery{{"239.255.255.250:1900", 1}, {"239.255.255.250:3702", 4}, {"224.0.0.251:5353", 255}}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		cases = append(cases, discovery{"[ff02::c]:1900", 1}, discovery{"[ff02::fb]:5353", 255}, discovery{"[ff05::c]:1900", 2})
	}
	onEveryUplink(t, nil, func(t *testing.T, p *publisher) {
		for _, c := range cases {
			group := netip.MustParseAddrPort(c.group)
			member := p.group(p.There, topo.Link, group)
			hosts := []*accepts{p.group(p.Here, topo.Link, group), p.group(p.Here, "lo", group)}
			from := topo.There4
			if group.Addr().Is6() {
				if from = topo.There6; group.Addr().IsLinkLocalMulticast() {
					from = p.linkLocal(p.There)
				}
			}
			want := []guest.Answer{{From: at(from, group.Port()), Text: fmt.Sprint(c.ttl)}}
			if got := do(p, guest.Seek{To: group, Text: "who is there", TTL: c.ttl, Answers: 1}); !slices.Equal(got, want) {
				t.Errorf("%v with TTL %d: answers %v, want %v", group, c.ttl, got, want)
			}
			if n := member.count(); n != 1 {
				t.Errorf("%v: %d datagrams, want 1", group, n)
			}
			for i, h := range hosts {
				if n := h.count(); n != 0 {
					t.Errorf("%v: %d datagrams reached member %d on the host", group, n, i)
				}
			}
		}
		// Every host is a member of these.
		for _, group := range []string{"224.0.0.1:9999", "[ff02::1]:9999"} {
			group := netip.MustParseAddrPort(group)
			if group.Addr().Is6() && !p.IPv6 {
				continue
			}
			member := p.group(p.There, topo.Link, group)
			if got := do(p, guest.Seek{To: group, Text: "x", Answers: 1, Timeout: 100 * time.Millisecond}); len(got) > 0 || member.count() > 0 {
				t.Errorf("%v: answers %v, %d datagrams left", group, got, member.count())
			}
		}
	})
}

// TestMulticastWithoutNetwork: where the host has no way to a group but its loopback, nothing is sent, and it is counted.
func TestMulticastWithoutNetwork(t *testing.T) {
	l := newLab(t)
	s := l.start()
	err := l.Here.Do(func() error {
		link, err := netlink.LinkByName(topo.Link)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(224, 0, 0, 0).To4(), Mask: net.CIDRMask(4, 32)}, Scope: netlink.SCOPE_LINK})
	})
	if err != nil {
		t.Fatal(err)
	}
	group := netip.MustParseAddrPort("239.255.255.250:1900")
	host := l.group(l.Here, "lo", group)
	if got := do(s, guest.Seek{To: group, Text: "x", Answers: 1, Timeout: 200 * time.Millisecond}); len(got) > 0 || host.count() > 0 {
		t.Errorf("answers %v, %d datagrams reached the host's loopback", got, host.count())
	}
	if values := s.counters().values; values["drop.udp.multicast"] != 1 {
		t.Errorf("counters %v", values)
	}
}
