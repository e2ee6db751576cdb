package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func TestForwardsUnchanged(t *testing.T) {
	sawIt := make(chan []byte, 1)
	up := newUpstream(t, func(q []byte, _ bool) [][]byte {
		sawIt <- append([]byte(nil), q...)
		a := append([]byte(nil), q...)
		a[2] |= 0x80
		return [][]byte{append(a, "unknown trailing data"...)}
	})
	r := start(t, Config{}, up.addr)
	m := question("mIxEd.Example", 65280)
	m.SetEdns0(1400, true)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &mdns.EDNS0_LOCAL{Code: 65001, Data: []byte("opaque")})
	m.CheckingDisabled = true
	raw := pack(m)
	sent := append([]byte(nil), raw...)
	got := ask(r, raw)
	seen := <-sawIt
	if !bytes.Equal(seen[2:], sent[2:]) {
		t.Errorf("the upstream got\n% x, sent was\n% x", seen, sent)
	}
	want := append(append([]byte(nil), sent...), "unknown trailing data"...)
	want[2] |= 0x80
	if !bytes.Equal(got, want) {
		t.Errorf("the client got\n% x, want\n% x", got, want)
	}
	if !bytes.Equal(raw, sent) {
		t.Error("the caller's buffer was changed")
	}
}

func TestQueryIsCopied(t *testing.T) {
	up := newUpstream(t, answersA("192.0.2.1"))
	r := start(t, Config{}, up.addr)
	m := question("copied.example", mdns.TypeA)
	raw := pack(m)
	got := make(chan []byte, 1)
	r.ServeUDP(raw, func(a []byte) { got <- a })
	clear(raw)
	if a := unpack(t, m, <-got); a.Question[0].Name != "copied.example." {
		t.Errorf("answered %v", a.Question)
	}
}

func TestRandomIDAndPort(t *testing.T) {
	ids := make(chan uint16, 20)
	up := newUpstream(t, func(q []byte, tcp bool) [][]byte {
		ids <- binary.BigEndian.Uint16(q)
		return answersA("192.0.2.1")(q, tcp)
	})
	r := start(t, Config{}, up.addr)
	id, port := map[uint16]bool{}, map[uint16]bool{}
	m := question("random.example", mdns.TypeA)
	m.Id = 7
	for range 20 {
		askMsg(t, r, m)
		id[<-ids] = true
		port[(<-up.ports).Port()] = true
	}
	if len(id) < 18 || len(port) < 15 {
		t.Errorf("20 queries had %d IDs and %d source ports", len(id), len(port))
	}
}

// big returns an answerFunc that answers with n TXT records of 100 bytes over TCP, and with the TC bit over UDP.
func big(n int) answerFunc {
	return func(q []byte, tcp bool) [][]byte {
		m := reply(q)
		if tcp {
			for range n {
				m.Answer = append(m.Answer, &mdns.TXT{Hdr: mdns.RR_Header{Name: m.Question[0].Name, Rrtype: mdns.TypeTXT,
					Class: mdns.ClassINET, Ttl: 1}, Txt: []string{strings.Repeat("x", 100)}})
			}
		} else {
			m.Truncated = true
		}
		return [][]byte{pack(m)}
	}
}

func TestTruncation(t *testing.T) {
	up := newUpstream(t, big(20))
	for _, c := range []struct {
		name   string
		edns   uint16
		maxUDP int
		tc     bool
		tcp    int64 // queries to the upstream over TCP
	}{
		{"no EDNS", 0, 0, true, 0},
		{"EDNS of the least", 512, 0, true, 0},
		{"EDNS below the least", 100, 0, true, 0},
		{"EDNS too small for it", 1232, 0, true, 1},
		{"EDNS large enough", 4096, 0, false, 1},
		{"the link is smaller", 4096, 1452, true, 1},
		{"beyond our own maximum", 65535, 100, true, 0},
	} {
		before := up.tcp.Load()
		r := start(t, Config{MaxUDP: c.maxUDP}, up.addr)
		m := question("big.example", mdns.TypeTXT)
		if c.edns > 0 {
			m.SetEdns0(c.edns, true)
		}
		raw := ask(r, pack(m))
		a := unpack(t, m, raw)
		if a.Truncated != c.tc || (len(a.Answer) == 20) == c.tc {
			t.Errorf("%s: TC %v with %d records, want TC %v", c.name, a.Truncated, len(a.Answer), c.tc)
		}
		if c.tc && len(raw) > 512 {
			t.Errorf("%s: a truncated answer of %d bytes", c.name, len(raw))
		}
		if n := up.tcp.Load() - before; n != c.tcp {
			t.Errorf("%s: %d queries over TCP, want %d", c.name, n, c.tcp)
		}
	}
}

// The resolver truncates answers of an upstream that ignores the client's UDP payload size.
func TestTruncatesOversizedAnswer(t *testing.T) {
	up := newUpstream(t, func(q []byte, _ bool) [][]byte { return big(10)(q, true) })
	r := start(t, Config{}, up.addr)
	m := question("big.example", mdns.TypeTXT)
	a := askMsg(t, r, m)
	if !a.Truncated || len(a.Answer) != 0 || a.IsEdns0() != nil || r.Stats().Truncated != 1 {
		t.Errorf("TC %v, %d records, counted %d", a.Truncated, len(a.Answer), r.Stats().Truncated)
	}
	m.SetEdns0(1000, true)
	a = askMsg(t, r, m)
	if !a.Truncated || a.IsEdns0() == nil || !a.IsEdns0().Do() {
		t.Errorf("the answer to a query with EDNS has no OPT record: %v", a)
	}
}

func TestFailover(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	pc.Close()
	good := newUpstream(t, answersA("192.0.2.9"))
	for _, c := range []struct {
		name   string
		first  netip.AddrPort
		within time.Duration
		sticks bool // the next query goes first to the upstream that answered
	}{
		{"silent", newUpstream(t, silent).addr, 3 * time.Second, true},
		{"closed port", closed, 500 * time.Millisecond, true},
		{"no route", netip.MustParseAddrPort("[fe80::1%nosuchlink]:53"), 500 * time.Millisecond, true},
		{"SERVFAIL", newUpstream(t, fails(mdns.RcodeServerFailure)).addr, 500 * time.Millisecond, false},
		{"REFUSED", newUpstream(t, fails(mdns.RcodeRefused)).addr, 500 * time.Millisecond, false},
		{"NOTIMP", newUpstream(t, fails(mdns.RcodeNotImplemented)).addr, 500 * time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// With the durations used in production.
			r, err := newResolver(Config{ResolvConf: t.TempDir() + "/none", Upstreams: []netip.AddrPort{c.first, good.addr}}, defaultTiming)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			begin := time.Now()
			if a := askMsg(t, r, question("a.example", mdns.TypeA)); firstA(a) != "192.0.2.9" {
				t.Fatalf("got %s", firstA(a))
			}
			if d := time.Since(begin); d > c.within {
				t.Errorf("took %v, want at most %v", d, c.within)
			}
			if sticks := r.order()[0] == good.addr; sticks != c.sticks {
				t.Errorf("the second upstream is queried first afterwards: %v, want %v", sticks, c.sticks)
			}
		})
	}
}

func TestNXDOMAINIsAnAnswer(t *testing.T) {
	first, second := newUpstream(t, fails(mdns.RcodeNameError)), newUpstream(t, answersA("192.0.2.9"))
	r := start(t, Config{}, first.addr, second.addr)
	if a := askMsg(t, r, question("no.example", mdns.TypeA)); a.Rcode != mdns.RcodeNameError || second.udp.Load() != 0 {
		t.Errorf("got %v; the second upstream was queried %d times", firstA(a), second.udp.Load())
	}
}

func TestPreferenceEnds(t *testing.T) {
	first, second := newUpstream(t, silent), newUpstream(t, answersA("192.0.2.9"))
	r := start(t, Config{}, first.addr, second.addr)
	r.time.prefer = 50 * time.Millisecond
	askMsg(t, r, question("a.example", mdns.TypeA))
	askMsg(t, r, question("b.example", mdns.TypeA))
	if n := first.udp.Load(); n != 1 {
		t.Errorf("the silent upstream was queried %d times, want once", n)
	}
	time.Sleep(60 * time.Millisecond)
	askMsg(t, r, question("c.example", mdns.TypeA))
	if n := first.udp.Load(); n < 2 {
		t.Error("the first upstream is not queried again")
	}
}

func TestAllFail(t *testing.T) {
	for _, c := range []struct {
		name string
		ups  []netip.AddrPort
		want int
	}{
		{"the first error is passed on", []netip.AddrPort{newUpstream(t, fails(mdns.RcodeRefused)).addr,
			newUpstream(t, fails(mdns.RcodeServerFailure)).addr}, mdns.RcodeRefused},
		{"an error is better than nothing", []netip.AddrPort{newUpstream(t, silent).addr,
			newUpstream(t, fails(mdns.RcodeRefused)).addr}, mdns.RcodeRefused},
		{"all silent", []netip.AddrPort{newUpstream(t, silent).addr, newUpstream(t, silent).addr}, mdns.RcodeServerFailure},
	} {
		r := start(t, Config{}, c.ups...)
		m := question("a.example", mdns.TypeA)
		m.SetEdns0(1232, false)
		a := askMsg(t, r, m)
		if a.Rcode != c.want || len(a.Question) != 1 {
			t.Errorf("%s: %v", c.name, a)
		}
	}
}

// Without any server in the file and on the host's loopback, the answer is SERVFAIL at once. A program may listen on this machine's
// port 53, so the test dials another address instead.
func TestNoServers(t *testing.T) {
	var asked string
	r := start(t, Config{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		asked = address
		return nil, &net.OpError{Op: "dial", Err: net.ErrClosed}
	}})
	begin := time.Now()
	a := askMsg(t, r, question("a.example", mdns.TypeA))
	if a.Rcode != mdns.RcodeServerFailure || time.Since(begin) > 100*time.Millisecond || asked != "127.0.0.1:53" {
		t.Errorf("%v after %v, asked %q", firstA(a), time.Since(begin), asked)
	}
}

func TestLostDatagramIsRetransmitted(t *testing.T) {
	var n atomic.Int64
	up := newUpstream(t, func(q []byte, tcp bool) [][]byte {
		if n.Add(1) == 1 {
			return nil
		}
		return answersA("192.0.2.1")(q, tcp)
	})
	if a := askMsg(t, start(t, Config{}, up.addr), question("a.example", mdns.TypeA)); firstA(a) != "192.0.2.1" {
		t.Errorf("got %s", firstA(a))
	}
}

func TestForgedAnswersAreIgnored(t *testing.T) {
	truth := func(q []byte) []byte { return answersA("192.0.2.1")(q, false)[0] }
	lie := func(q []byte) *mdns.Msg {
		m := new(mdns.Msg)
		if err := m.Unpack(answersA("203.0.113.66")(q, false)[0]); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for name, f := range map[string]func(m *mdns.Msg) []byte{
		"wrong ID":       func(m *mdns.Msg) []byte { m.Id++; return pack(m) },
		"wrong name":     func(m *mdns.Msg) []byte { m.Question[0].Name = "b.example."; return pack(m) },
		"wrong type":     func(m *mdns.Msg) []byte { m.Question[0].Qtype = mdns.TypeAAAA; return pack(m) },
		"not an answer":  func(m *mdns.Msg) []byte { m.Response = false; return pack(m) },
		"no question":    func(m *mdns.Msg) []byte { m.Question = nil; return pack(m) },
		"another opcode": func(m *mdns.Msg) []byte { m.Opcode = mdns.OpcodeUpdate; return pack(m) },
		"cut short":      func(m *mdns.Msg) []byte { return pack(m)[:14] },
		"three bytes":    func(m *mdns.Msg) []byte { return pack(m)[:3] },
		"a name that is a loop": func(m *mdns.Msg) []byte {
			b := pack(m)
			return append(b[:minMessage:minMessage], 0xc0, 0x0c, 0, 1, 0, 1)
		},
	} {
		up := newUpstream(t, func(q []byte, _ bool) [][]byte { return [][]byte{f(lie(q)), truth(q)} })
		r := start(t, Config{}, up.addr)
		if a := askMsg(t, r, question("a.example", mdns.TypeA)); firstA(a) != "192.0.2.1" || r.Stats().Mismatched != 1 {
			t.Errorf("%s: got %s, %d answers counted as mismatched", name, firstA(a), r.Stats().Mismatched)
		}
	}
	// A server that changes the case of the name is accepted. Many forged answers end the attempt before its timeout.
	up := newUpstream(t, func(q []byte, _ bool) [][]byte {
		b := truth(q)
		copy(b[minMessage:], foldName(b[minMessage:questionEnd(b)-4]))
		return [][]byte{b}
	})
	if a := askMsg(t, start(t, Config{}, up.addr), question("A.eXample", mdns.TypeA)); firstA(a) != "192.0.2.1" {
		t.Errorf("the answer of a server that changes the case of the name was ignored: %s", firstA(a))
	}
	up = newUpstream(t, func(q []byte, _ bool) (out [][]byte) {
		for range 2 * maxMismatched {
			m := lie(q)
			m.Id++
			out = append(out, pack(m))
		}
		return out
	})
	begin := time.Now()
	a := askMsg(t, start(t, Config{}, up.addr), question("a.example", mdns.TypeA))
	if a.Rcode != mdns.RcodeServerFailure || time.Since(begin) > fast.total/2 {
		t.Errorf("many forged answers: %s after %v", firstA(a), time.Since(begin))
	}
}

func TestRejected(t *testing.T) {
	up := newUpstream(t, answersA("192.0.2.1"))
	r := start(t, Config{}, up.addr)
	valid := pack(question("a.example", mdns.TypeA))
	with := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), valid...)) }
	edns := func(n int) []byte {
		m := question("a.example", mdns.TypeA)
		for range n {
			o := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT, Class: 1232}}
			m.Extra = append(m.Extra, o)
		}
		return pack(m)
	}
	for _, c := range []struct {
		name string
		msg  []byte
		want int // -1: no answer
	}{
		{"nothing", nil, -1},
		{"half a header", valid[:11], -1},
		{"an answer", with(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		{"larger than a message", make([]byte, 65536), -1},
		{"header alone", valid[:12], mdns.RcodeFormatError},
		{"question cut", valid[:len(valid)-1], mdns.RcodeFormatError},
		{"name cut", valid[:15], mdns.RcodeFormatError},
		{"no question", with(func(b []byte) []byte { b[5] = 0; return b[:12] }), mdns.RcodeFormatError},
		{"two questions", with(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), mdns.RcodeFormatError},
		{"65535 records, none there", with(func(b []byte) []byte { b[10], b[11] = 255, 255; return b }), mdns.RcodeFormatError},
		{"a loop", with(func(b []byte) []byte { return append(b[:12], 0xc0, 0x0c, 0, 1, 0, 1) }), mdns.RcodeFormatError},
		{"a long label", with(func(b []byte) []byte { b[12] = 64; return append(b, make([]byte, 300)...) }), mdns.RcodeFormatError},
		{"a long name", with(func(b []byte) []byte { return append(b[:12], bytes.Repeat([]byte{1, 'a'}, 200)...) }), mdns.RcodeFormatError},
		{"a record's length is wrong", with(func(b []byte) []byte {
			b[11] = 1
			return append(b, 0, 0, 41, 16, 0, 0, 0, 0, 0, 255, 255)
		}), mdns.RcodeFormatError},
		{"two OPT records", edns(2), mdns.RcodeFormatError},
		{"update", with(func(b []byte) []byte { b[2] = mdns.OpcodeUpdate << 3; return b }), mdns.RcodeNotImplemented},
		{"notify", with(func(b []byte) []byte { b[2] = mdns.OpcodeNotify << 3; return b }), mdns.RcodeNotImplemented},
		{"transfer", pack(question("a.example", mdns.TypeAXFR)), mdns.RcodeRefused},
	} {
		before := r.Stats()
		got := make(chan []byte, 1)
		r.ServeUDP(c.msg, func(a []byte) { got <- a })
		if c.want < 0 {
			if after := r.Stats(); after.Malformed != before.Malformed+1 {
				t.Errorf("%s: not counted as malformed", c.name)
			}
			continue
		}
		a := <-got
		if len(a) < 12 || rcodeOf(a) != c.want || a[2]&0x80 == 0 || !bytes.Equal(a[:2], c.msg[:2]) {
			t.Errorf("%s: answered % x, want rcode %d", c.name, a, c.want)
		}
		if err := new(mdns.Msg).Unpack(a); err != nil {
			t.Errorf("%s: the answer cannot be parsed: %v", c.name, err)
		}
	}
	if n := up.udp.Load() + up.tcp.Load(); n != 0 {
		t.Errorf("%d rejected queries were forwarded", n)
	}
	askMsg(t, r, question("a.example", mdns.TypeA)) // the resolver still works
}

func TestInflightIsBounded(t *testing.T) {
	up := newUpstream(t, silent)
	r := start(t, Config{}, up.addr)
	raw := pack(question("a.example", mdns.TypeA))
	begin := time.Now()
	for range maxInflight + 50 {
		r.ServeUDP(raw, func([]byte) {})
	}
	if d := time.Since(begin); d > fast.total {
		t.Errorf("ServeUDP blocked for %v", d)
	}
	if s := r.Stats(); s.Inflight != maxInflight || s.InflightFull != 50 {
		t.Errorf("%d in flight, %d dropped; want %d and 50", s.Inflight, s.InflightFull, maxInflight)
	}
	eventually(t, "all come to an end", func() bool { return r.Stats().Inflight == 0 })
}

func TestCloseEndsEverything(t *testing.T) {
	up := newUpstream(t, silent)
	r, err := newResolver(Config{ResolvConf: t.TempDir() + "/none", Upstreams: []netip.AddrPort{up.addr}}, defaultTiming)
	if err != nil {
		t.Fatal(err)
	}
	c, ended := connect(t, r)
	writeMessage(c, pack(question("a.example", mdns.TypeA)))
	r.ServeUDP(pack(question("a.example", mdns.TypeA)), func([]byte) { t.Error("answered after Close") })
	eventually(t, "both in flight", func() bool { return up.udp.Load()+up.tcp.Load() == 2 })
	begin := time.Now()
	r.Close()
	r.Close()
	<-ended
	if d := time.Since(begin); d > time.Second {
		t.Errorf("Close took %v", d)
	}
	r.ServeUDP(pack(question("a.example", mdns.TypeA)), func([]byte) { t.Error("answered after Close") })
	if _, ended := connect(t, r); ended != nil {
		<-ended
	}
	if n := r.Stats().Inflight; n != 0 {
		t.Errorf("%d in flight after Close", n)
	}
}
