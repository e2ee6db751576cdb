package splicetcp

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/rawsock"
	"rootlessnet/policy"
)

// setRules changes the special address Other4 by change; the new rules apply from the next request on.
func (w *world) setRules(change func(*policy.Special)) {
	s := policy.Special{Addr: forwardlab.Other4, To: policy.ToHost, Host: hostAddr}
	change(&s)
	w.rules.Special = []policy.Special{s}
	w.policy.Set(w.rules)
}

// forbid drops requests to Other4. (An answer would need the gateway's stack.)
func forbid(s *policy.Special) { s.To = policy.ToDrop }

// request is the state of the request from a port; there is none: false.
func (w *world) request(port uint16) (requestState, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.requests[w.flow(port)]
	if r == nil {
		return 0, false
	}
	return r.state, true
}

func (w *world) waitReinjected(port uint16) {
	w.Helper()
	forwardlab.Eventually(w.TB, "the SYN is re-injected", func() bool {
		s, there := w.request(port)
		return there && s == reinjected
	})
}

// connectReset connects like connect, and is reset.
func (w *world) connectReset(port uint16) {
	w.Helper()
	c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(w.flow(port).Src), net.TCPAddrFromAddrPort(w.listener))
	if err == nil { // or the reset was there first
		defer c.Close()
		forwardlab.ExpectReset(w.TB, c)
	} else if !forwardlab.IsReset(err) {
		w.Error(err)
	}
}

// fullServer replaces w.remote by a server with a full backlog: connects to it stay under way until drain.
type fullServer struct {
	fd      int
	fillers []*net.TCPConn
}

func (w *world) fullServer() *fullServer {
	w.Helper()
	_ = w.remote.Close()
	at := netip.AddrPortFrom(hostAddr, w.listener.Port())
	fd, err := rawsock.Socket(true)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { unix.Close(fd) })
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := rawsock.Bind(fd, at); err != nil {
		w.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil { // the backlog holds one
		w.Fatal(err)
	}
	return &fullServer{fd, []*net.TCPConn{forwardlab.Call(w.TB, netip.AddrPort{}, at)}}
}

// drain accepts a connection, so that the backlog has space.
func (s *fullServer) drain(t testing.TB) {
	t.Helper()
	fd, _, err := rawsock.Accept(s.fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// SYNs that the guest sends again while the host's connect is under way, on several processors, start no second dial.
func TestSpliceSYNSentAgainWhileDialling(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	server := w.fullServer()
	port := w.freePort()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if !w.syn(port, guestTTL) {
					t.Error("a SYN that was sent again was left to the stack path")
				}
			}
		})
	}
	wg.Wait()
	if s := w.Stats(); s.Dialling != 1 || forwardlab.Taken(w.budget) != descriptors || len(w.requests) != 1 {
		t.Errorf("%+v, %d descriptors taken, %d requests", s, forwardlab.Taken(w.budget), len(w.requests))
	}
	server.drain(t)
	w.waitReinjected(port)
	c := w.connect(port)
	var h int
	forwardlab.Eventually(t, "the server's end", func() (ok bool) {
		var err error
		h, _, err = rawsock.Accept(server.fd)
		return err == nil
	})
	defer unix.Close(h)
	forwardlab.SendString(t, c, "x")
	b := make([]byte, 1)
	forwardlab.Eventually(t, "the data", func() bool { n, _ := unix.Read(h, b); return n == 1 })
	if s := w.Stats(); s.Active != 1 || s.Dialling != 0 {
		t.Errorf("%+v", s)
	}
}

// Close ends what is under way: connects to a destination that does not answer, re-injected SYNs, and dials that wait for a descriptor.
func TestSpliceCloseWhileDialling(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	n.InRouter(t, func() error { return forwardlab.Route("198.18.3.0/24", "", unix.RTN_BLACKHOLE) })
	t.Run("no answer", func(t *testing.T) {
		w := newWorldInside(t, forwardlab.Limit, 0)
		w.syn(20100, guestTTL) // is re-injected
		w.setRules(func(s *policy.Special) { s.Host = netip.MustParseAddr("198.18.3.1") })
		var wg sync.WaitGroup
		for g := range uint16(4) {
			wg.Go(func() {
				for i := range uint16(10) {
					if !w.syn(20200+100*g+i, guestTTL) {
						t.Error("a request was left to the stack path")
					}
				}
			})
		}
		wg.Wait()
		if s := w.Stats(); s.Dialling != 40 || forwardlab.Taken(w.budget) != 41*descriptors {
			t.Errorf("%+v, %d taken", s, forwardlab.Taken(w.budget))
		}
		w.stop()
		if s := w.Stats(); s.Dialling != 0 || forwardlab.Taken(w.budget) != 0 || len(w.requests) != 0 || w.reinjected != 0 {
			t.Errorf("after Close: %+v, %d taken", s, forwardlab.Taken(w.budget))
		}
	})
	t.Run("no descriptors", func(t *testing.T) {
		w := newWorldInside(t, forwardlab.Limit, 0)
		withoutDescriptors(t, func() {
			for i := range uint16(5) {
				if !w.syn(20000+i, guestTTL) {
					t.Error("a request was left to the stack path")
				}
			}
		})
		if s := w.Stats(); s.Dialling != 5 || s.DialRetries == 0 {
			t.Errorf("%+v", s)
		}
		w.stop() // the dials would be tried again in a moment
		if s := w.Stats(); s.Dialling != 0 || forwardlab.Taken(w.budget) != 0 {
			t.Errorf("after Close: %+v, %d taken", s, forwardlab.Taken(w.budget))
		}
		time.Sleep(250 * time.Millisecond) // longer than the pause between two tries
		if n := len(w.requests); n != 0 {
			t.Errorf("%d requests after Close", n)
		}
	})
}

// withoutDescriptors calls fn while no descriptor can be opened.
func withoutDescriptors(t testing.TB, fn func()) {
	t.Helper()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	few := lim
	few.Cur = 3 // less than are open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	fn()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
}

// A dial that finds no descriptor is tried again.
func TestSpliceDialWaitsForADescriptor(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	port := w.freePort()
	withoutDescriptors(t, func() { w.syn(port, guestTTL) })
	if s := w.Stats(); s.DialRetries != 1 || s.Dialling != 1 {
		t.Errorf("%+v", s)
	}
	w.waitReinjected(port)
	c := w.connect(port)
	h := forwardlab.Accept(t, w.remote)
	forwardlab.SendString(t, c, "x")
	forwardlab.Expect(t, h, "x")
}

// Rules that change while a request is under way.
func TestSpliceRulesChangeWhileUnderWay(t *testing.T) {
	if forwardlab.EnterNetns(t) == nil {
		return
	}
	t.Run("dialling", func(t *testing.T) { // the next SYN drops the request
		w := newWorldInside(t, forwardlab.Limit, 0)
		w.fullServer()
		port := w.freePort()
		w.syn(port, guestTTL)
		w.setRules(forbid)
		w.f.Rejudge(0)
		if !w.syn(port, guestTTL) {
			t.Error("a request that is refused was left to the stack path")
		}
		if _, there := w.request(port); there || w.Stats().Dialling != 0 || forwardlab.Taken(w.budget) != 0 {
			t.Errorf("the request is still there: %+v", w.Stats())
		}
	})
	t.Run("dialling, and no further SYN", func(t *testing.T) { // the connection is reset when it is established
		w := newWorldInside(t, forwardlab.Limit, 0)
		server := w.fullServer()
		port := w.freePort()
		w.syn(port, guestTTL)
		w.setRules(forbid)
		w.f.Rejudge(0)
		server.drain(t)
		w.waitReinjected(port)
		w.connectReset(port)
		w.waitFor("ended", func(s stats) bool { return s.Active == 0 && w.f.Flows.Len() == 0 })
	})
	t.Run("re-injected", func(t *testing.T) { // decided under the old rules, joined under the new ones
		w := newWorldInside(t, forwardlab.Limit, 0)
		port := w.freePort()
		w.syn(port, guestTTL)
		h := forwardlab.Accept(t, w.remote)
		w.setRules(forbid)
		if n := w.f.Rejudge(0); n != 0 {
			t.Errorf("%d flows were ended before there was one", n)
		}
		w.connectReset(port)
		forwardlab.ExpectReset(t, h)
		w.waitFor("ended", func(s stats) bool { return s.Active == 0 && s.Outbound == 1 && w.f.Flows.Len() == 0 })
	})
	t.Run("re-injected, and allowed as before", func(t *testing.T) {
		w := newWorldInside(t, forwardlab.Limit, 0)
		port := w.freePort()
		w.syn(port, guestTTL)
		h := forwardlab.Accept(t, w.remote)
		w.rules.HostLoopback = policy.HostLoopback{All: true} // something else has changed
		w.policy.Set(w.rules)
		w.f.Rejudge(0)
		c := w.connect(port)
		forwardlab.SendString(t, c, "x")
		forwardlab.Expect(t, h, "x")
	})
}

// Requests, rules that change, kills and lists at once, for the race detector. Nothing is left when all have ended.
func TestSpliceConcurrentUse(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	go func() { // what arrives at the host is closed at once
		for {
			c, err := w.remote.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = c.Read(make([]byte, 1))
			_ = c.Close()
		}
	}()
	stop := make(chan struct{})
	var guests, others sync.WaitGroup
	loop := func(fn func(i int)) {
		others.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					fn(i)
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	loop(func(i int) {
		w.setRules(func(s *policy.Special) {
			if i%4 == 3 {
				forbid(s)
			}
		})
		w.f.Rejudge(0)
	})
	loop(func(int) {
		for _, i := range w.f.Flows.List() {
			w.f.Flows.Kill(i.ID)
			break
		}
		_ = w.Stats()
	})
	for g := range uint16(3) {
		guests.Go(func() {
			for i := range uint16(60) {
				port := 21000 + 100*g + i
				if !w.syn(port, guestTTL) {
					w.own.Succeed() // a handshake that the rules have ended
					continue
				}
				if i%4 == 3 { // sent again: the request is dropped
					w.syn(port, guestTTL)
				}
				c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(w.flow(port).Src), net.TCPAddrFromAddrPort(w.listener))
				if err == nil {
					_, _ = c.Write([]byte("x"))
					_ = c.Close()
				}
			}
		})
	}
	guests.Wait()
	close(stop)
	others.Wait()
	if s := w.Stats(); s.Outbound == 0 {
		t.Errorf("nothing was joined: %+v", s)
	}
	w.stop()
	if n := w.f.Flows.Len(); n != 0 || forwardlab.Taken(w.budget) != 0 || w.Stats().Dialling != 0 {
		t.Errorf("%d flows and %d descriptors are left, %+v", n, forwardlab.Taken(w.budget), w.Stats())
	}
}
