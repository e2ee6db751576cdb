package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	mdns "github.com/miekg/dns"
)

// fuzzResolver returns a resolver whose upstream answers every query with *answer after the right ID. The upstream is connected
// by pipes instead of sockets, for speed. Dialling TCP fails, so that every query takes the same path.
func fuzzResolver(f *testing.F, answer *[]byte) *Resolver {
	dial := func(_ context.Context, network, _ string) (net.Conn, error) {
		if network == "tcp" {
			return nil, errors.New("no TCP here")
		}
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			buf := make([]byte, maxMessage)
			n, err := theirs.Read(buf)
			if err != nil {
				return
			}
			a := append([]byte(nil), buf[:n]...)
			if *answer != nil {
				a = append(a[:2], *answer...)
			} else {
				a[2] |= 0x80
			}
			theirs.Write(a)
		}()
		return ours, nil
	}
	return start(f, Config{Names: testNames(), Dial: dial}, netip.MustParseAddrPort("192.0.2.1:53"))
}

func seeds(f *testing.F, add func([]byte)) {
	plain := question("a.example", mdns.TypeA)
	edns := question("host.docker.internal", mdns.TypeAAAA)
	edns.SetEdns0(1232, true)
	for _, m := range []*mdns.Msg{plain, edns, question("localhost", mdns.TypeANY), question("2.2.0.10.in-addr.arpa", mdns.TypePTR)} {
		add(pack(m))
	}
	add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1})
}

// FuzzServeUDP: any datagram is dropped and counted, or gets exactly one answer, with its ID and within the client's limit.
func FuzzServeUDP(f *testing.F) {
	seeds(f, func(b []byte) { f.Add(b) })
	r := fuzzResolver(f, new([]byte))
	f.Fuzz(func(t *testing.T, msg []byte) {
		malformed := r.Stats().Malformed
		got := make(chan []byte, 1)
		r.ServeUDP(msg, func(a []byte) { got <- a })
		if r.Stats().Malformed != malformed {
			if len(msg) >= minMessage && len(msg) <= maxMessage && msg[2]&0x80 == 0 {
				t.Fatalf("% x dropped", msg)
			}
			return
		}
		a := <-got
		if len(a) < minMessage || !bytes.Equal(a[:2], msg[:2]) || a[2]&0x80 == 0 {
			t.Fatalf("% x answered with % x", msg, a)
		}
		q, _, _ := parseQuery(msg)
		if len(a) > r.udpLimit(q) {
			t.Fatalf("% x answered with %d bytes of %d", msg, len(a), r.udpLimit(q))
		}
	})
}

// FuzzUpstream: whatever an upstream sends, the client gets one answer to its own question, or an error.
func FuzzUpstream(f *testing.F) {
	seeds(f, func(b []byte) { f.Add(b[2:]) })
	q := pack(question("a.example", mdns.TypeA))
	good := append([]byte(nil), q...)
	good[2] |= 0x80
	f.Add(good[2:])
	var answer []byte
	r := fuzzResolver(f, &answer)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxMessage-2 || b == nil {
			return
		}
		answer = b
		got := make(chan []byte, 1)
		r.ServeUDP(q, func(a []byte) { got <- a })
		a := <-got
		if len(a) < minMessage || !bytes.Equal(a[:2], q[:2]) || a[2]&0x80 == 0 || len(a) > minUDPSize {
			t.Fatalf("upstream's % x became % x", b, a)
		}
		if binary.BigEndian.Uint16(a[4:]) == 1 && !bytes.EqualFold(a[minMessage:len(q)], q[minMessage:]) {
			t.Fatalf("the answer has another question: % x", a)
		}
	})
}

// FuzzServeTCP: ServeTCP returns for any input and leaves no query in flight.
func FuzzServeTCP(f *testing.F) {
	seeds(f, func(b []byte) {
		f.Add(append([]byte{0, byte(len(b))}, b...))
		f.Add(append([]byte{0, byte(len(b) + 1)}, b...))
	})
	r := start(f, Config{Names: testNames(), Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no upstream")
	}})
	f.Fuzz(func(t *testing.T, stream []byte) {
		ours, theirs := net.Pipe()
		ended := make(chan struct{})
		go func() { defer close(ended); r.ServeTCP(theirs) }()
		go func() { ours.Write(stream); ours.Close() }()
		buf := make([]byte, 4096)
		for {
			if _, err := ours.Read(buf); err != nil {
				break
			}
		}
		<-ended
	})
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch a b\n"))
	f.Add([]byte("nameserver fe80::1%eth0\n#x\n;y\ndomain \x00\xff\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		c := parseResolvConf(file)
		if len(c.servers) > maxNameservers {
			t.Fatalf("%d servers", len(c.servers))
		}
		for _, w := range slices.Concat(c.search, c.options) {
			if !validWord(w) && len(w) <= 255 {
				t.Fatalf("word %q", w)
			}
		}
		for _, s := range c.servers {
			if !s.IsValid() || s.Addr().Is4In6() {
				t.Fatalf("server %v", s)
			}
		}
	})
}
