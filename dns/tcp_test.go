package dns

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func endsWithin(t *testing.T, what string, ended chan struct{}, d time.Duration) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(d):
		t.Errorf("%s: still served after %v", what, d)
	}
}

// Queries on one connection are handled concurrently and answered when they are ready; an answer of 60 KiB arrives completely.
func TestTCPPipelining(t *testing.T) {
	up := newUpstream(t, func(q []byte, tcp bool) [][]byte {
		if reply(q).Question[0].Name == "slow.example." {
			time.Sleep(200 * time.Millisecond)
		}
		return big(500)(q, tcp)
	})
	r := start(t, Config{}, up.addr)
	c, ended := connect(t, r)
	slow, quick := question("slow.example", mdns.TypeTXT), question("quick.example", mdns.TypeTXT)
	var both bytes.Buffer
	for _, m := range []*mdns.Msg{slow, quick} {
		b := pack(m)
		both.Write([]byte{byte(len(b) >> 8), byte(len(b))})
		both.Write(b)
	}
	// In pieces that do not match message boundaries, as a network may deliver them; then the client closes its direction.
	for b := both.Bytes(); len(b) > 0; {
		n := min(len(b), 7)
		if _, err := c.Write(b[:n]); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
		time.Sleep(time.Millisecond)
	}
	c.(*net.TCPConn).CloseWrite()
	for _, m := range []*mdns.Msg{quick, slow} {
		raw, err := readMessage(c)
		if err != nil {
			t.Fatalf("%s: %v", m.Question[0].Name, err)
		}
		if a := unpack(t, m, raw); len(a.Answer) != 500 || a.Question[0].Name != m.Question[0].Name {
			t.Errorf("%s: %d records for %s", m.Question[0].Name, len(a.Answer), a.Question[0].Name)
		}
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the last answer: %v, want EOF", err)
	}
	endsWithin(t, "half-closed client", ended, time.Second)
	if up.udp.Load() != 0 {
		t.Error("a query received over TCP was forwarded over UDP first")
	}
}

func TestTCPManyQueries(t *testing.T) {
	r := start(t, Config{Names: testNames()})
	c, _ := connect(t, r)
	const n = 20 * maxPipelined
	go func() {
		for i := range n {
			m := question("db", mdns.TypeA)
			m.Id = uint16(i)
			writeMessage(c, pack(m))
		}
	}()
	ids := map[uint16]bool{}
	for range n {
		raw, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		ids[uint16(raw[0])<<8|uint16(raw[1])] = true
	}
	if len(ids) != n {
		t.Errorf("%d different answers to %d queries", len(ids), n)
	}
}

// A query received over TCP is forwarded over UDP if the upstream does not support TCP.
func TestTCPUpstreamHasUDPOnly(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go (&upstream{}).serveUDP(pc, answersA("192.0.2.3"))
	r := start(t, Config{}, pc.LocalAddr().(*net.UDPAddr).AddrPort())
	c, _ := connect(t, r)
	m := question("a.example", mdns.TypeA)
	writeMessage(c, pack(m))
	raw, err := readMessage(c)
	if err != nil {
		t.Fatal(err)
	}
	if a := unpack(t, m, raw); firstA(a) != "192.0.2.3" {
		t.Errorf("got %s", firstA(a))
	}
}

func TestTCPBadClients(t *testing.T) {
	up := newUpstream(t, answersA("192.0.2.1"))
	r := start(t, Config{}, up.addr)
	valid := pack(question("a.example", mdns.TypeA))
	framed := append([]byte{0, byte(len(valid))}, valid...)
	t.Run("sends", func(t *testing.T) { // returns when all clients have sent
		for _, c := range []struct {
			name   string
			send   []byte
			within time.Duration
		}{
			{"sends nothing", nil, 2 * fast.tcpIdle},
			{"half a length", []byte{0}, 2 * fast.tcpIdle},
			{"a length and no message", []byte{0xff, 0xff}, 2 * fast.tcpMessage},
			{"half a message", framed[:20], 2 * fast.tcpMessage},
			{"an empty message", []byte{0, 0}, 200 * time.Millisecond},
			{"shorter than a header", []byte{0, 3, 1, 2, 3}, 200 * time.Millisecond},
			{"an answer", append(append([]byte{0, byte(len(valid))}, valid[:2]...), append([]byte{0x81}, valid[3:]...)...), 200 * time.Millisecond},
			{"HTTP", []byte("GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"), 2 * fast.tcpMessage},
			{"stalls after a complete query", append(append([]byte(nil), framed...), 0, 9, 9), 2 * (fast.tcpMessage + fast.tcpIdle)},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				conn, ended := connect(t, r)
				if _, err := conn.Write(c.send); err != nil {
					t.Fatal(err)
				}
				endsWithin(t, c.name, ended, c.within)
			})
		}
	})
	// A client that sends a message byte by byte is subject to the time limit for a message.
	conn, ended := connect(t, r)
	stop := make(chan struct{})
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(fast.tcpMessage / 10):
				conn.Write([]byte{1})
			}
		}
	}()
	endsWithin(t, "sends byte by byte", ended, 3*fast.tcpMessage)
	close(stop)
	if s := r.Stats(); s.Conns != 0 || s.Inflight != 0 {
		t.Errorf("%d connections and %d queries remain", s.Conns, s.Inflight)
	}
}

// A reset ends the client's queries at once.
func TestTCPReset(t *testing.T) {
	up := newUpstream(t, silent)
	r := start(t, Config{}, up.addr)
	r.time.total = 10 * time.Second
	c, ended := connect(t, r)
	writeMessage(c, pack(question("a.example", mdns.TypeA)))
	eventually(t, "the query is forwarded", func() bool { return up.tcp.Load() == 1 })
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	endsWithin(t, "reset", ended, 300*time.Millisecond)
}

// A client that sends queries and never reads is disconnected.
func TestTCPClientDoesNotRead(t *testing.T) {
	up := newUpstream(t, big(500))
	r := start(t, Config{}, up.addr)
	c, ended := connect(t, r)
	c.(*net.TCPConn).SetReadBuffer(4096)
	raw := pack(question("a.example", mdns.TypeTXT))
	for range 200 {
		if writeMessage(c, raw) != nil {
			break // the resolver has closed the connection already
		}
	}
	eventually(t, "more answers than the socket buffers hold", func() bool { return up.tcp.Load() > maxPipelined })
	endsWithin(t, "does not read", ended, 10*fast.tcpMessage)
	if n := r.Stats().Inflight; n != 0 {
		t.Errorf("%d in flight", n)
	}
}

func TestTCPConnectionsAreBounded(t *testing.T) {
	r := start(t, Config{Names: testNames()})
	var first net.Conn
	var ends []chan struct{}
	for range maxTCPConns {
		c, ended := connect(t, r)
		ends = append(ends, ended)
		if first == nil {
			first = c
		}
	}
	eventually(t, "all are served", func() bool { return r.Stats().Conns == maxTCPConns })
	_, ended := connect(t, r)
	endsWithin(t, "one too many", ended, 200*time.Millisecond)
	if s := r.Stats(); s.ConnsRefused != 1 {
		t.Errorf("%d connections counted as refused, want 1", s.ConnsRefused)
	}
	m := question("db", mdns.TypeA)
	if err := writeMessage(first, pack(m)); err != nil {
		t.Fatal(err)
	}
	if raw, err := readMessage(first); err != nil || len(raw) == 0 {
		t.Errorf("the first connection does not work: %v", err)
	}
	for _, ended := range ends {
		endsWithin(t, "idle", ended, 4*fast.tcpIdle)
	}
}
