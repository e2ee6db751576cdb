package e2e

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// hasAgent is what runs an agent: a sandbox, a namespace to attach to, a container.
type hasAgent interface{ box() *sandbox }

func (s *sandbox) box() *sandbox { return s }

// do runs one operation inside and returns its result.
func do[R any](in hasAgent, op guest.Operation[R]) R {
	s := in.box()
	s.Helper()
	result, err := guest.Do(s.inside, op)
	if err != nil {
		s.Fatalf("inside %s, %.200s: %v; stderr:\n%s", s.name, guest.Request(op), s.explain(err), s.stderr)
	}
	return result
}

// want runs one operation inside and compares its result.
func want[R comparable](in hasAgent, result R, op guest.Operation[R]) {
	s := in.box()
	s.Helper()
	if got := do(s, op); got != result {
		s.Errorf("inside, %.200s: got %+v, want %+v", guest.Request(op), got, result)
	}
}

// once runs a sandbox around one operation to its end. The result is meaningful only when the exit status is 0.
func once[R any](l *lab, op guest.Operation[R], flags ...string) (R, result) {
	l.Helper()
	return decodeOnce(l, op, l.once(flags, program(op)...))
}

// decodeOnce reads the result of an operation that a program of its own ran.
func decodeOnce[R any](l *lab, op guest.Operation[R], r result) (answer R, _ result) {
	l.Helper()
	if r.code == 0 {
		var err error
		if answer, err = guest.Decode(op, r.stdout); err != nil {
			l.Errorf("%.200s: %v", guest.Request(op), err)
		}
	}
	return answer, r
}

// program is the command line of a guest operation.
func program[R any](op guest.Operation[R]) []string {
	return append([]string{self()}, guest.Command(op)...)
}

// agentProgram is the command line of the agent.
func agentProgram() []string { return append([]string{self()}, guest.AgentCommand()...) }

// listenTCP starts a server inside, on every address.
func (s *sandbox) listenTCP(server guest.Server, port uint16) netip.AddrPort {
	s.Helper()
	return do(s, guest.ServeTCP{Server: server, Port: port})
}

// listenUDP starts a UDP echo server inside, on every address.
func (s *sandbox) listenUDP(port uint16) netip.AddrPort {
	s.Helper()
	return do(s, guest.ServeUDP{Port: port})
}

// exchange sends "hello" from inside to an Echo server.
func (s *sandbox) exchange(to netip.AddrPort) guest.Echoed {
	s.Helper()
	return do(s, guest.Exchange{To: guest.To(to), Text: "hello"})
}

// wantEcho expects that an Echo server answers, and returns the client's address that it saw. words describe when that was, for the error.
func (s *sandbox) wantEcho(to netip.AddrPort, when ...string) netip.Addr {
	s.Helper()
	got := s.exchange(to)
	if !echoed(got) {
		s.Errorf("%sexchange with %v: %+v", heading(when), to, got)
	}
	return got.Client.Addr()
}

// wantEchoFrom expects that an Echo server answers, and that it saw that client.
func (s *sandbox) wantEchoFrom(client netip.Addr, to netip.AddrPort, when ...string) {
	s.Helper()
	if got := s.exchange(to); !echoed(got) || got.Client.Addr() != client {
		s.Errorf("%sexchange with %v: %+v; want the echo, and the client %v", heading(when), to, got, client)
	}
}

// wantEchoWith is wantEcho from a socket with options.
func (s *sandbox) wantEchoWith(options guest.Socket, to netip.AddrPort, when ...string) {
	s.Helper()
	if got := do(s, guest.Exchange{To: guest.To(to), Text: "hello", Socket: options}); !echoed(got) {
		s.Errorf("%sexchange with %v from a socket with %+v: %+v", heading(when), to, options, got)
	}
}

// echoed reports whether "hello" came back.
func echoed(e guest.Echoed) bool { return e.Outcome == guest.OK && e.Text == "hello" }

func heading(when []string) string {
	if len(when) == 0 {
		return ""
	}
	return strings.Join(when, " ") + ": "
}

// wantConnect expects that a connect from inside has the outcome.
func (s *sandbox) wantConnect(outcome guest.Outcome, to netip.AddrPort) {
	s.Helper()
	s.wantConnectTo(outcome, guest.To(to), 0)
}

// wantNoAnswer expects that nothing answers a connect from inside in that time.
func (s *sandbox) wantNoAnswer(to netip.AddrPort, timeout time.Duration) {
	s.Helper()
	s.wantConnectTo(guest.TimedOut, guest.To(to), timeout)
}

// wantConnectTo is wantConnect for a name, or with another timeout than the usual.
func (s *sandbox) wantConnectTo(outcome guest.Outcome, to guest.Target, timeout time.Duration) {
	s.Helper()
	if got := do(s, guest.Connect{To: to, Timeout: timeout}); got.Outcome != outcome {
		s.Errorf("inside, connect to %v: got %v, want %v", to, got.Outcome, outcome)
	}
}

// askUDP sends a datagram from inside to a UDP echo server.
func (s *sandbox) askUDP(to netip.AddrPort, text string, timeout time.Duration) guest.Echoed {
	s.Helper()
	return do(s, guest.AskUDP{To: guest.To(to), Text: text, Timeout: timeout})
}

// wantUDPOutcome expects the outcome of a datagram from inside.
func (s *sandbox) wantUDPOutcome(outcome guest.Outcome, to netip.AddrPort, timeout time.Duration) {
	s.Helper()
	if got := s.askUDP(to, "x", timeout); got.Outcome != outcome {
		s.Errorf("inside, a datagram to %v: got %+v, want %v", to, got, outcome)
	}
}

// hold opens n connections from inside and keeps them; the result is how many there are now.
func (s *sandbox) hold(to netip.AddrPort, n int) guest.Held {
	s.Helper()
	return do(s, guest.Hold{To: guest.To(to), Count: n})
}

// wantHeldAnswer expects that n connections of hold carry a byte there and back.
func (s *sandbox) wantHeldAnswer(n int) {
	s.Helper()
	want(s, guest.Held{Count: n}, guest.EchoHeld{})
}

// wantChurn opens n connections from inside, one after the other, and expects all to work.
func (s *sandbox) wantChurn(to netip.AddrPort, n int) {
	s.Helper()
	want(s, n, guest.Churn{To: guest.To(to), Count: n})
}

// wantHalfClose transfers n bytes from inside to a SumAfterEnd server.
func (s *sandbox) wantHalfClose(to netip.AddrPort, n int) {
	s.Helper()
	want(s, guest.OK, guest.HalfClose{To: guest.To(to), Bytes: n})
}

// wantPong expects that an address answers an echo request from inside.
func (s *sandbox) wantPong(to netip.Addr) {
	s.Helper()
	want(s, guest.Pong{}, guest.Ping{To: to})
}

// connectTo dials from a namespace.
func (l *lab) connectTo(ns *topo.NS, addr netip.AddrPort) net.Conn {
	l.Helper()
	c, err := l.dial(ns, addr)
	if err != nil {
		l.Fatalf("connect to %v: %v", addr, err)
	}
	return c
}

// dial is connectTo for a connect that may fail.
func (l *lab) dial(ns *topo.NS, addr netip.AddrPort) (net.Conn, error) {
	l.Helper()
	c, err := ns.Dial("tcp", addr.String(), 5*time.Second)
	if err == nil {
		l.Cleanup(func() { c.Close() })
	}
	return c, err
}

// dialUDP connects a UDP socket in a namespace.
func (l *lab) dialUDP(ns *topo.NS, addr netip.AddrPort) net.Conn {
	l.Helper()
	c, err := ns.Dial("udp", addr.String(), time.Second)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { c.Close() })
	return c
}

// exchangeFrom connects from a namespace to an Echo server behind a published port.
func (l *lab) exchangeFrom(ns *topo.NS, to netip.AddrPort) guest.Echoed {
	l.Helper()
	c := l.connectTo(ns, to)
	defer c.Close()
	return guest.Exchange{Text: "hello"}.On(c)
}

// wantAnswer expects that the Echo server behind a published port answers.
func (l *lab) wantAnswer(ns *topo.NS, to netip.AddrPort, when ...string) {
	l.Helper()
	if got := l.exchangeFrom(ns, to); !echoed(got) {
		l.Errorf("%sexchange with the published port %v: %+v", heading(when), to, got)
	}
}

// wantClientSeen expects that the Echo server behind a published port answers, and that it sees the client's own address.
func (l *lab) wantClientSeen(ns *topo.NS, to netip.AddrPort, when ...string) {
	l.Helper()
	l.wantClientSeenOn(l.connectTo(ns, to), when...)
}

// wantClientSeenOn is wantClientSeen on an open connection, which it closes.
func (l *lab) wantClientSeenOn(c net.Conn, when ...string) {
	l.Helper()
	defer c.Close()
	got := guest.Exchange{Text: "hello"}.On(c)
	if client := c.LocalAddr().(*net.TCPAddr).AddrPort(); !echoed(got) || got.Client != client {
		l.Errorf("%sexchange with the published port %v: %+v; want the echo, and the client %v", heading(when), c.RemoteAddr(), got, client)
	}
}

// wantUDPClientSeenOn is wantClientSeenOn for a connected UDP socket.
func (l *lab) wantUDPClientSeenOn(c net.Conn, when ...string) {
	l.Helper()
	defer c.Close()
	got := guest.AskUDP{Text: "hello"}.On(c)
	if client := c.LocalAddr().(*net.UDPAddr).AddrPort(); !echoed(got) || got.Client != client {
		l.Errorf("%sa datagram to the published port %v: %+v; want the echo, and the client %v", heading(when), c.RemoteAddr(), got, client)
	}
}

// closedPort connects from "there" to a published port on which no server listens inside, and returns the outcome:
// a reset, unless the reset came before the connect had returned.
func (l *lab) closedPort(to netip.AddrPort) guest.Outcome {
	l.Helper()
	c, err := l.dial(l.There, to)
	if err != nil {
		return guest.OutcomeOf(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err = c.Read(make([]byte, 1)); err == nil {
		return guest.UnexpectedData
	}
	return guest.OutcomeOf(err)
}
