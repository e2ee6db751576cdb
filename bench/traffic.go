package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

const (
	// chunk is what iperf3 writes at a time; TCP's throughput hardly changes above it.
	chunk = 128 << 10
	// udpPatience is how long a client waits for one datagram's answer before it counts it as lost.
	udpPatience = 200 * time.Millisecond
	// dialPatience bounds the connects of a client; a helper that needs longer has failed.
	dialPatience = 10 * time.Second
)

// The first byte of a connection tells the server what the client wants.
const (
	modeOut = 'o' // the server reads until EOF and answers with the count, 8 bytes, big endian
	modeIn  = 'i' // the server writes until the client is gone
	modeRR  = 'r' // the server answers each byte with itself
)

// Sample is what a client measured.
type Sample struct {
	Bytes   uint64  `json:"bytes,omitempty"`
	Ops     uint64  `json:"ops,omitempty"`
	Lost    uint64  `json:"lost,omitempty"`
	Seconds float64 `json:"seconds"`
}

// serve runs the server for TCP and UDP on addr until stdin ends. It prints "ready" once both sockets are open.
func serve(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go echoUDP(u)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go serveConn(c.(*net.TCPConn))
	}
}

func echoUDP(u net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		_, _ = u.WriteTo(b[:n], from)
	}
}

func serveConn(c *net.TCPConn) {
	defer c.Close()
	var mode [1]byte
	if _, err := io.ReadFull(c, mode[:]); err != nil {
		return
	}
	switch mode[0] {
	case modeOut:
		n := drain(c)
		_ = binary.Write(c, binary.BigEndian, n)
	case modeIn:
		fill(c)
	case modeRR:
		b := make([]byte, 1)
		for {
			if _, err := c.Write(mode[:]); err != nil {
				return
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
		}
	}
}

// drain reads until EOF or an error and returns the bytes read.
func drain(c net.Conn) (total uint64) {
	b := make([]byte, chunk)
	for {
		n, err := c.Read(b)
		total += uint64(n)
		if err != nil {
			return total
		}
	}
}

// fill writes until an error.
func fill(c net.Conn) {
	b := make([]byte, chunk)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// client measures once and prints a Sample.
func client(kind, addr string, d time.Duration) error {
	measure, ok := map[string]func(string, time.Duration) (Sample, error){
		"tcp-out": tcpOut, "tcp-in": tcpIn, "tcp-rr": tcpRR, "tcp-crr": tcpCRR, "udp-rr": udpRR,
	}[kind]
	if !ok {
		return fmt.Errorf("no client called %q", kind)
	}
	s, err := measure(addr, d)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

func open(addr string, mode byte) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", addr, dialPatience)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{mode}); err != nil {
		c.Close()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func tcpOut(addr string, d time.Duration) (Sample, error) {
	c, err := open(addr, modeOut)
	if err != nil {
		return Sample{}, err
	}
	defer c.Close()
	start := time.Now()
	if err := c.SetWriteDeadline(start.Add(d)); err != nil {
		return Sample{}, err
	}
	fill(c)
	if err := c.CloseWrite(); err != nil {
		return Sample{}, err
	}
	// What counts is what arrived, and when the last of it had.
	var n uint64
	if err := c.SetReadDeadline(time.Now().Add(dialPatience)); err != nil {
		return Sample{}, err
	}
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		return Sample{}, fmt.Errorf("the server's count: %w", err)
	}
	return Sample{Bytes: n, Seconds: time.Since(start).Seconds()}, nil
}

func tcpIn(addr string, d time.Duration) (Sample, error) {
	c, err := open(addr, modeIn)
	if err != nil {
		return Sample{}, err
	}
	defer c.Close()
	start := time.Now()
	if err := c.SetReadDeadline(start.Add(d)); err != nil {
		return Sample{}, err
	}
	n := drain(c)
	return Sample{Bytes: n, Seconds: time.Since(start).Seconds()}, c.SetLinger(0)
}

func tcpRR(addr string, d time.Duration) (Sample, error) {
	c, err := open(addr, modeRR)
	if err != nil {
		return Sample{}, err
	}
	defer c.Close()
	b := make([]byte, 1)
	var s Sample
	start := time.Now()
	for time.Since(start) < d {
		if _, err := io.ReadFull(c, b); err != nil {
			return s, err
		}
		s.Ops++
		if _, err := c.Write(b); err != nil {
			return s, err
		}
	}
	s.Seconds = time.Since(start).Seconds()
	return s, nil
}

func tcpCRR(addr string, d time.Duration) (Sample, error) {
	b := make([]byte, 1)
	var s Sample
	start := time.Now()
	for time.Since(start) < d {
		c, err := open(addr, modeRR)
		if err != nil {
			return s, err
		}
		_, err = io.ReadFull(c, b)
		_ = c.SetLinger(0)
		c.Close()
		if err != nil {
			return s, err
		}
		s.Ops++
	}
	s.Seconds = time.Since(start).Seconds()
	return s, nil
}

func udpRR(addr string, d time.Duration) (Sample, error) {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return Sample{}, err
	}
	defer c.Close()
	var s Sample
	b := make([]byte, 8)
	answer := make([]byte, 16)
	start := time.Now()
	for seq := uint64(0); time.Since(start) < d; seq++ {
		binary.BigEndian.PutUint64(b, seq)
		if _, err := c.Write(b); err != nil {
			return s, err
		}
		if err := c.SetReadDeadline(time.Now().Add(udpPatience)); err != nil {
			return s, err
		}
		if ok, err := awaitSeq(c, answer, seq); err != nil {
			return s, err
		} else if !ok {
			s.Lost++
			continue
		}
		s.Ops++
	}
	s.Seconds = time.Since(start).Seconds()
	if s.Ops == 0 {
		return s, errors.New("no datagram was answered")
	}
	return s, nil
}

// awaitSeq reads until the answer with seq; false at the deadline.
func awaitSeq(c net.Conn, b []byte, seq uint64) (bool, error) {
	for {
		n, err := c.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if n == 8 && binary.BigEndian.Uint64(b) == seq {
			return true, nil
		}
	}
}

// hold opens n connections to addr (none when it is ""), each proven by one byte there and back, prints "ready PID"
// and keeps them until stdin ends.
func hold(addr string, n int) error {
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := open(addr, modeRR)
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(conns), err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return fmt.Errorf("connection %d: %w", len(conns), err)
		}
		conns = append(conns, c)
	}
	fmt.Println("ready", os.Getpid())
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, c := range conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	return nil
}
