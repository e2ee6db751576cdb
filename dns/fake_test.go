package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestMain fails if goroutines of the resolver or sockets remain after the tests.
func TestMain(m *testing.M) {
	sockets := countSockets()
	code := m.Run()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		ours := ourGoroutines()
		if len(ours) == 0 && countSockets() <= sockets {
			break
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "leaked: %d sockets (%d before), %d goroutines:\n%s\n", countSockets(), sockets,
				len(ours), strings.Join(ours, "\n\n"))
			code = max(code, 1)
			break
		}
	}
	os.Exit(code)
}

// ourGoroutines returns the stacks of goroutines that run code of the resolver or a session.
func ourGoroutines() (out []string) {
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "dns.(*Resolver)") || strings.Contains(stack, "dns.(*session)") {
			out = append(out, stack)
		}
	}
	return out
}

func countSockets() (n int) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

var fast = timing{
	stagger:    100 * time.Millisecond,
	retransmit: 150 * time.Millisecond,
	tcpDial:    200 * time.Millisecond,
	total:      700 * time.Millisecond,
	prefer:     time.Minute,
	tcpIdle:    400 * time.Millisecond,
	tcpMessage: 300 * time.Millisecond,
	poll:       20 * time.Millisecond,
}

// upstream is a DNS server on the loopback, on the same port for UDP and TCP. Its answerFunc gets each received message and
// returns the messages to send back.
type upstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // queries
	ports    chan netip.AddrPort
}

type answerFunc func(q []byte, tcp bool) [][]byte

func newUpstream(t testing.TB, answer answerFunc) *upstream {
	t.Helper()
	for range 20 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", pc.LocalAddr().String())
		if err != nil {
			pc.Close()
			continue // the port is in use for TCP
		}
		u := &upstream{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort(), ports: make(chan netip.AddrPort, 1000)}
		go u.serveUDP(pc, answer)
		go u.serveTCP(l, answer)
		t.Cleanup(func() { pc.Close(); l.Close() })
		return u
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil
}

func (u *upstream) serveUDP(pc net.PacketConn, answer answerFunc) {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		u.udp.Add(1)
		select {
		case u.ports <- from.(*net.UDPAddr).AddrPort():
		default:
		}
		q := append([]byte(nil), buf[:n]...)
		go func() {
			for _, a := range answer(q, false) {
				pc.WriteTo(a, from)
			}
		}()
	}
}

func (u *upstream) serveTCP(l net.Listener, answer answerFunc) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for {
				q, err := readMessage(c)
				if err != nil {
					return
				}
				u.tcp.Add(1)
				for _, a := range answer(q, true) {
					writeMessage(c, a)
				}
			}
		}()
	}
}

func readMessage(c net.Conn) ([]byte, error) {
	var l [2]byte
	if _, err := io.ReadFull(c, l[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(l[:]))
	_, err := io.ReadFull(c, msg)
	return msg, err
}

// answersA returns an answerFunc that answers every A query with addr.
func answersA(addr string) answerFunc {
	return func(q []byte, _ bool) [][]byte {
		m := reply(q)
		m.Answer = append(m.Answer, &mdns.A{Hdr: mdns.RR_Header{Name: m.Question[0].Name, Rrtype: mdns.TypeA,
			Class: mdns.ClassINET, Ttl: 60}, A: net.ParseIP(addr)})
		return [][]byte{pack(m)}
	}
}

func fails(rcode int) answerFunc {
	return func(q []byte, _ bool) [][]byte {
		m := reply(q)
		m.Rcode = rcode
		return [][]byte{pack(m)}
	}
}

func silent([]byte, bool) [][]byte { return nil }

func reply(q []byte) *mdns.Msg {
	m := new(mdns.Msg)
	if err := m.Unpack(q); err != nil {
		panic(err)
	}
	return new(mdns.Msg).SetReply(m)
}

func pack(m *mdns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// start returns a resolver with the given upstreams and an empty file in place of the host's.
func start(t testing.TB, cfg Config, ups ...netip.AddrPort) *Resolver {
	t.Helper()
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	}
	cfg.Upstreams = append(cfg.Upstreams, ups...)
	r, err := newResolver(cfg, fast)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func question(name string, qtype uint16) *mdns.Msg {
	return new(mdns.Msg).SetQuestion(mdns.Fqdn(name), qtype)
}

// ask passes raw to ServeUDP and returns the answer, or nil if there was none in time.
func ask(r *Resolver, raw []byte) []byte {
	got := make(chan []byte, 1)
	r.ServeUDP(raw, func(a []byte) { got <- a })
	select {
	case a := <-got:
		return a
	case <-time.After(2 * time.Second):
		return nil
	}
}

func askMsg(t testing.TB, r *Resolver, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	raw := ask(r, pack(m))
	if raw == nil {
		t.Fatalf("%s: no answer", m.Question[0].Name)
	}
	return unpack(t, m, raw)
}

func unpack(t testing.TB, q *mdns.Msg, raw []byte) *mdns.Msg {
	t.Helper()
	a := new(mdns.Msg)
	if err := a.Unpack(raw); err != nil {
		t.Fatalf("answer % x: %v", raw, err)
	}
	if a.Id != q.Id || !a.Response {
		t.Fatalf("answer has ID %d, response %v; the query has ID %d", a.Id, a.Response, q.Id)
	}
	return a
}

func firstA(m *mdns.Msg) string {
	for _, rr := range m.Answer {
		if a, ok := rr.(*mdns.A); ok {
			return a.A.String()
		}
	}
	return "rcode " + mdns.RcodeToString[m.Rcode]
}

// connect returns the client's end of a connection that r serves; ended is closed when ServeTCP has returned.
func connect(t testing.TB, r *Resolver) (c net.Conn, ended chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err = new(net.Dialer).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() { defer close(ended); r.ServeTCP(s) }()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	return c, ended
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within the time limit: " + what)
		}
	}
}
