package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// The ports that every forwarder publishes for the suite.
var (
	toEcho      = mapping{"tcp", 8080, 80, 0}
	toUDPEcho   = mapping{"udp", 8081, 81, 0}
	toNoServer  = mapping{"tcp", 8082, 82, 0} // no server listens there
	toLateUDP   = mapping{"udp", 8083, 83, 0} // a server listens there only after the first client has sent
	toReset     = mapping{"tcp", 8084, 84, 0}
	toSum       = mapping{"tcp", 8085, 85, 0}
	toClosing   = mapping{"tcp", 8086, 86, 0}
	toReporting = mapping{"tcp", 8087, 87, 0}
	toProduce   = mapping{"tcp", 8088, 88, 0}
	toIPv4Only  = mapping{"tcp", 8089, 89, 0} // its server listens on IPv4 only
	tcpRange    = mapping{"tcp", 8090, 90, 3} // a server listens on the third
	udpRange    = mapping{"udp", 8090, 90, 3} // and here
	toRemove    = mapping{"tcp", 8094, 80, 0}
	toSteady    = mapping{"udp", 8095, 95, 0} // its server starts while clients are sending, and starts again
	toSteady4   = mapping{"udp", 8096, 96, 0} // the same, of a server that listens on IPv4 only

	published = []mapping{toEcho, toUDPEcho, toNoServer, toLateUDP, toReset, toSum, toClosing, toReporting, toProduce, toIPv4Only, tcpRange, udpRange, toRemove,
		toSteady, toSteady4}
)

// publishCases run on each forwarder, in this order, while it runs.
var publishCases = []struct {
	name string
	test func(p *publisher)
}{
	{"TCP client's address", (*publisher).tcpClientAddress},
	{"UDP client's address", (*publisher).udpClientAddress},
	{"client on the host's loopback", (*publisher).loopbackClient},
	{"no TCP server inside", (*publisher).noTCPServer},
	{"UDP server that starts late", (*publisher).lateUDPServer},
	{"UDP clients that go on sending", (*publisher).steadyUDPClients},
	{"server resets", (*publisher).serverResets},
	{"client resets", (*publisher).clientResets},
	{"half-close", (*publisher).halfClose},
	{"both ends close together", (*publisher).closeTogether},
	{"large transfers", (*publisher).largeTransfers},
	{"many clients at once", (*publisher).manyClients},
	{"range of ports", (*publisher).portRange},
	{"sizes of datagrams", (*publisher).datagramSizes},
	{"IPv6 client, IPv4 server", (*publisher).familyChange},
	{"removed port", (*publisher).removed},
	{"end of the forwarder", (*publisher).ended},
}

// TestPublish is the suite of port forwarding: every case on every forwarder.
func TestPublish(t *testing.T) {
	for _, f := range forwarders(t) {
		t.Run(f.name, func(t *testing.T) {
			l := newLab(t)
			if f.datapath != "" {
				l.flags = []string{"--link", f.link, "--datapath", f.datapath}
			}
			p := f.open(l, published)
			p.forwarder = f
			p.listenTCP(guest.Echo, toEcho.inside)
			p.listenUDP(toUDPEcho.inside)
			p.listenTCP(guest.ResetAfterByte, toReset.inside)
			p.listenTCP(guest.SumAfterEnd, toSum.inside)
			p.listenTCP(guest.ClosingTogether, toClosing.inside)
			p.listenTCP(guest.Reporting, toReporting.inside)
			p.listenTCP(guest.Produce, toProduce.inside)
			do(p, guest.ServeTCP{Server: guest.Echo, Addr: any4, Port: toIPv4Only.inside})
			p.listenTCP(guest.Echo, tcpRange.inside+2)
			p.listenUDP(udpRange.inside + 2)
			for _, c := range publishCases {
				t.Run(c.name, func(t *testing.T) {
					old := l.T
					l.T = t
					defer func() { l.T = old }()
					c.test(p)
				})
			}
		})
	}
}

// clients are the families in which the forwarder listens.
func (p *publisher) clients() []family {
	if p.onlyIPv4 {
		return p.families()[:1]
	}
	return p.families()
}

// wantSeen expects that the server behind a published port sees a client of "there" as it should.
func (p *publisher) wantSeen(network string, expected [2]netip.Addr, client netip.Addr, to netip.AddrPort) {
	p.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(at(client, 0))}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(at(client, 0))
	}
	c, err := p.There.DialWith(d, network, to.String())
	if err != nil {
		p.Errorf("%s from %v: %v", network, client, err)
		return
	}
	defer c.Close()
	var got guest.Echoed
	if network == "udp" {
		got = guest.AskUDP{Text: "hello"}.On(c)
	} else {
		got = guest.Exchange{Text: "hello"}.On(c)
	}
	want := seen(expected, client)
	if !echoed(got) || got.Client.Addr() != want {
		p.Errorf("%s from %v: %+v; want the echo, and the client %v", network, client, got, want)
	}
	if own := netip.MustParseAddrPort(c.LocalAddr().String()); want == client && got.Client.Port() != own.Port() {
		p.Errorf("%s from %v: the server saw port %d", network, own, got.Client.Port())
	}
}

// tcpClientAddress: the server sees the client's address, that of a neighbour of the host or of a machine behind a router.
func (p *publisher) tcpClientAddress() {
	for _, f := range p.clients() {
		for _, client := range []netip.Addr{f.there, f.there2} {
			p.wantSeen("tcp", p.seenTCP, client, at(f.here, toEcho.host))
		}
	}
}

func (p *publisher) udpClientAddress() {
	for _, f := range p.clients() {
		for _, client := range []netip.Addr{f.there, f.there2} {
			p.wantSeen("udp", p.seenUDP, client, at(f.here, toUDPEcho.host))
		}
	}
}

// loopbackClient: a client on the host's loopback is answered; 127.0.0.1 would be another host inside.
func (p *publisher) loopbackClient() {
	if got := p.exchangeFrom(p.Here, at(loopback4, toEcho.host)); !echoed(got) || got.Client.Addr() != p.seenLoopback {
		p.Errorf("TCP: %+v; want the echo, and the client %v", got, p.seenLoopback)
	}
	if got := (guest.AskUDP{Text: "hello"}).On(p.dialUDP(p.Here, at(loopback4, toUDPEcho.host))); !echoed(got) || got.Client.Addr().IsLoopback() {
		p.Errorf("UDP: %+v", got)
	}
}

// noTCPServer: the client gets a reset, never a connection that is accepted and then closed.
func (p *publisher) noTCPServer() {
	for _, f := range p.clients() {
		if got := p.closedPort(at(f.here, toNoServer.host)); got != guest.Reset && got != guest.Refused {
			p.Errorf("from %v: %v; want a reset", f.there, got)
		}
	}
}

func (p *publisher) serverResets() {
	for _, f := range p.clients() {
		if got := (guest.AwaitReset{}).On(p.connectTo(p.There, at(f.here, toReset.host))); got.Outcome != guest.Reset {
			p.Errorf("from %v: %v", f.there, got.Outcome)
		}
	}
}

func (p *publisher) clientResets() {
	for _, f := range p.clients() {
		if got := (guest.Abort{}).On(p.connectTo(p.There, at(f.here, toReporting.host))); got != guest.OK {
			p.Errorf("from %v: %v", f.there, got)
		}
		want(p, afterReset, guest.AwaitReport{})
	}
}

// halfClose: the server's answer comes after the client has closed its half.
func (p *publisher) halfClose() {
	for _, f := range p.clients() {
		if got := (guest.HalfClose{Bytes: 300 << 10}).On(p.connectTo(p.There, at(f.here, toSum.host))); got != guest.OK {
			p.Errorf("from %v: %v", f.there, got)
		}
	}
}

func (p *publisher) closeTogether() {
	for _, f := range p.clients() {
		for range 20 {
			if got := (guest.CloseTogether{}).On(p.connectTo(p.There, at(f.here, toClosing.host))); got != guest.OK {
				p.Fatalf("from %v: %v", f.there, got)
			}
		}
	}
}

// largeTransfers go in and out, with a checksum over all.
func (p *publisher) largeTransfers() {
	for _, f := range p.clients() {
		if got := (guest.HalfClose{Bytes: guest.DownloadSize + 17}).On(p.connectTo(p.There, at(f.here, toSum.host))); got != guest.OK {
			p.Errorf("in, from %v: %v", f.there, got)
		}
		if got := (guest.Download{}).On(p.connectTo(p.There, at(f.here, toProduce.host))); got != guest.OK {
			p.Errorf("out, to %v: %v", f.there, got)
		}
	}
}

// manyClients are more than there are sockets in the pool.
func (p *publisher) manyClients() {
	const n = 300
	results := make(chan string, n)
	for range n {
		go func() {
			c, err := p.There.Dial("tcp", at(topo.Here4, toEcho.host).String(), 5*time.Second)
			if err != nil {
				results <- err.Error()
				return
			}
			defer c.Close()
			client := c.LocalAddr().(*net.TCPAddr).AddrPort()
			if got := (guest.Exchange{Text: "hello"}).On(c); !echoed(got) || got.Client != client {
				results <- fmt.Sprintf("%+v; want the echo, and the client %v", got, client)
				return
			}
			results <- ""
		}()
	}
	for range n {
		if problem := <-results; problem != "" {
			p.Error(problem)
		}
	}
}

// portRange: each port of the range is forwarded to its own port inside.
func (p *publisher) portRange() {
	for i := range tcpRange.following + 1 {
		tcp, udp := at(topo.Here4, tcpRange.host+i), at(topo.Here4, udpRange.host+i)
		if i == 2 {
			p.wantSeen("tcp", p.seenTCP, topo.There4, tcp)
			p.wantSeen("udp", p.seenUDP, topo.There4, udp)
			continue
		}
		if got := p.closedPort(tcp); got != guest.Reset && got != guest.Refused {
			p.Errorf("TCP port %d: %v; want a reset", tcp.Port(), got)
		}
		if got := (guest.AskUDP{Text: "hello", Timeout: 100 * time.Millisecond}).On(p.dialUDP(p.There, udp)); got.Outcome == guest.OK {
			p.Errorf("UDP port %d: %+v; want no answer", udp.Port(), got)
		}
	}
}

// datagramSizes: empty ones, some that fit the link in one packet and some that do not, alone and in GSO batches.
func (p *publisher) datagramSizes() {
	large := string(make([]byte, 20000))
	for _, f := range p.clients() {
		c := p.dialUDP(p.There, at(f.here, toUDPEcho.host))
		if got := (guest.AskUDPInBatches{}).On(c); got != guest.OK {
			p.Errorf("from %v: %v", f.there, got)
		}
		if got := (guest.AskUDP{Text: large}).On(c); got.Text != large {
			p.Errorf("20000 bytes from %v: %v, %d bytes came back", f.there, got.Outcome, len(got.Text))
		}
	}
}

// familyChange: a server that listens on IPv4 only serves clients of both families.
func (p *publisher) familyChange() {
	for _, f := range p.clients() {
		p.wantAnswer(p.There, at(f.here, toIPv4Only.host))
	}
}

// removed: a port that is removed is closed, and the others stay.
func (p *publisher) removed() {
	if p.remove == nil {
		return // it takes its ports when it starts; see ended
	}
	p.wantAnswer(p.There, at(topo.Here4, toRemove.host))
	p.remove(toRemove)
	for _, f := range p.clients() {
		if _, err := p.dial(p.There, at(f.here, toRemove.host)); guest.OutcomeOf(err) != guest.Refused {
			p.Errorf("from %v: %v; want refused", f.there, err)
		}
	}
	p.portFree(toRemove.host, time.Second)
	p.wantAnswer(p.There, at(topo.Here4, toEcho.host))
}

// ended: the ports are free when the forwarder has ended.
func (p *publisher) ended() {
	p.end()
	for _, m := range []mapping{toEcho, toRemove} {
		p.portFree(m.host, 3*time.Second)
	}
	if _, err := p.dial(p.There, at(topo.Here4, toEcho.host)); guest.OutcomeOf(err) != guest.Refused {
		p.Errorf("after the end: %v; want refused", err)
	}
}
