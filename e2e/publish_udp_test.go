package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"rootlessnet/internal/nettest/guest"
)

// lateUDPServer: a client that asks before the server is up is answered as soon as the server is, on the same socket.
func (p *publisher) lateUDPServer() {
	var conns []net.Conn
	for _, f := range p.clients() {
		c := p.dialUDP(p.There, at(f.here, toLateUDP.host))
		conns = append(conns, c)
		if got := (guest.AskUDP{Text: "hello", Timeout: 200 * time.Millisecond}).On(c); got.Outcome != guest.TimedOut && got.Outcome != guest.Refused {
			p.Errorf("before the server is up: %+v", got)
		}
	}
	p.listenUDP(toLateUDP.inside)
	for _, c := range conns {
		eventually(p.T, 3*time.Second, func() string {
			got := guest.AskUDP{Text: "hello", Timeout: 300 * time.Millisecond}.On(c)
			client := netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
			if want := seen(p.seenUDP, client); !echoed(got) || got.Client.Addr() != want {
				return fmt.Sprintf("from %v: %+v; want the echo, and the client %v", client, got, want)
			}
			return ""
		})
	}
}

// steady is a client that sends a datagram every 50 ms, served or not.
type steady struct {
	net.Conn
	mu   sync.Mutex
	seen []netip.Addr // as which the server saw it, an entry for each answer
	stop chan struct{}
}

func (p *publisher) steadyClient(to netip.AddrPort) *steady {
	c := &steady{Conn: p.dialUDP(p.There, to), stop: make(chan struct{})}
	go func() {
		b := make([]byte, 99)
		for {
			n, err := c.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if client, _, _ := strings.Cut(string(b[:n]), " "); err == nil {
				c.mu.Lock()
				c.seen = append(c.seen, netip.MustParseAddrPort(client).Addr())
				c.mu.Unlock()
			}
		}
	}()
	go func() {
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-tick.C:
				_, _ = c.Write([]byte("x")) // an error is that of an earlier datagram
			case <-c.stop:
				tick.Stop()
				return
			}
		}
	}()
	return c
}

// answers are the addresses as which the server has seen the client since the last call.
func (c *steady) answers() []netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.seen
	c.seen = nil
	return seen
}

// steadyUDPClients: clients that send before their server is up, and go on while it ends and starts again, are served whenever it
// is up, and never under another address while it serves their family.
func (p *publisher) steadyUDPClients() {
	const down, up = 500 * time.Millisecond, 2 * time.Second
	servers := []struct {
		mapping
		addr netip.Addr // on which it listens
	}{{toSteady, netip.Addr{}}, {toSteady4, any4}}
	clients := map[*steady]netip.Addr{} // and as which it should be seen; zero: by any address
	for _, s := range servers {
		for _, f := range p.clients() {
			want := seen(p.seenUDP, f.there)
			if s.addr == any4 && f.there.Is6() {
				want = netip.Addr{}
			}
			clients[p.steadyClient(at(f.here, s.host))] = want
		}
	}
	for range 2 {
		time.Sleep(down)
		for c := range clients {
			if got := c.answers(); len(got) > 0 {
				p.Errorf("%v: answered while no server is up: %v", c.LocalAddr(), got)
			}
		}
		for _, s := range servers {
			do(p, guest.ServeUDP{Addr: s.addr, Port: s.inside, For: up})
		}
		time.Sleep(up + 100*time.Millisecond)
		for c, want := range clients {
			got := c.answers()
			if len(got) < 3 {
				p.Errorf("%v to %v: %d answers in %v", c.LocalAddr(), c.RemoteAddr(), len(got), up)
			}
			for _, as := range got {
				if want.IsValid() && as != want {
					p.Errorf("%v to %v was seen as %v, want %v", c.LocalAddr(), c.RemoteAddr(), as, want)
					break
				}
			}
		}
	}
	for c := range clients {
		close(c.stop)
		c.Close()
	}
}
