package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// udpAnswerTimeout is how long a client waits for the answer to a datagram before it counts the datagram as lost.
	udpAnswerTimeout = 200 * time.Millisecond
	// drainTime is how long after the last datagram was sent the server still counts datagrams.
	drainTime = 150 * time.Millisecond
	// recordTimeout is how long the server's last record may take to arrive.
	recordTimeout = 3 * time.Second
)

// streams holds the connections of a bulk transfer.
type streams struct {
	conns       []*net.TCPConn
	local, seen string
}

func (s *streams) Close() error {
	resetAll(s.conns)
	return nil
}

func openStreams(l Load, mode byte) (s streams, err error) {
	s.conns, s.local, s.seen, err = openAll(l.Addr, mode, l.Workers)
	return s, err
}

// sender sends as fast as it can. The server counts the bytes that arrive and reports them with its own times.
type sender struct{ streams }

func newSender(l Load) (runner, error) {
	s, err := openStreams(l, modeOut)
	return &sender{s}, err
}

func (s *sender) run(l Load) (Sample, error) {
	begin := time.Now().Add(l.Warm)
	end := begin.Add(l.Time)
	rates := make([]Sample, len(s.conns))
	errs := make([]error, len(s.conns))
	var wg sync.WaitGroup
	for i, c := range s.conns {
		_ = c.SetWriteDeadline(end)
		_ = c.SetReadDeadline(end.Add(recordTimeout))
		wg.Go(func() { fill(c) })
		wg.Go(func() {
			base, last, final, err := watch(bufio.NewReader(c), begin, end, end)
			span := time.Duration(last.When - base.When).Seconds()
			rates[i] = Sample{Bytes: float64(last.Count-base.Count) / span * l.Time.Seconds(), Total: float64(final.Count)}
			errs[i] = err
		})
	}
	wg.Wait()
	sum := Sample{Seconds: l.Time.Seconds(), Local: s.local, Seen: s.seen}
	for _, r := range rates {
		sum.Bytes += r.Bytes
		sum.Total += r.Total
	}
	return sum, errors.Join(errs...)
}

// receiver reads as fast as it can.
type receiver struct{ streams }

func newReceiver(l Load) (runner, error) {
	s, err := openStreams(l, modeIn)
	return &receiver{s}, err
}

func (s *receiver) run(l Load) (Sample, error) {
	var got atomic.Uint64
	var early atomic.Int32
	start := time.Now()
	end := start.Add(l.Warm + l.Time)
	var wg sync.WaitGroup
	for _, c := range s.conns {
		_ = c.SetReadDeadline(end)
		if _, err := c.Write([]byte{modeIn}); err != nil {
			return Sample{}, err
		}
		wg.Go(func() {
			if err := drain(c, &got); !errors.Is(err, os.ErrDeadlineExceeded) {
				early.Add(1)
			}
		})
	}
	time.Sleep(time.Until(start.Add(l.Warm)))
	before, begin := got.Load(), time.Now()
	wg.Wait()
	after, took := got.Load(), time.Since(begin)
	if n := early.Load(); n != 0 {
		return Sample{}, fmt.Errorf("%d of %d streams ended early", n, len(s.conns))
	}
	return Sample{Seconds: took.Seconds(), Bytes: float64(after - before), Total: float64(after),
		Local: s.local, Seen: s.seen}, nil
}

// drain reads until EOF or an error, and adds the number of bytes to count.
func drain(c net.Conn, count *atomic.Uint64) error {
	b := make([]byte, chunk)
	for {
		n, err := c.Read(b)
		count.Add(uint64(n))
		if err != nil {
			return err
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

// ops is a client that repeats operations, each of ops in a loop of its own.
type ops struct {
	ops   []func() error
	close func()
}

func (o *ops) run(l Load) (Sample, error) { return rate(l, o.ops) }

func (o *ops) Close() error {
	o.close()
	return nil
}

// newRR measures round trips: one byte each way on an established connection.
func newRR(l Load) (runner, error) {
	conns, _, _, err := openAll(l.Addr, modeRR, l.Workers)
	if err != nil {
		return nil, err
	}
	o := &ops{close: func() { resetAll(conns) }}
	for _, c := range conns {
		b := []byte{0}
		if _, err := io.ReadFull(c, b); err != nil { // the server's greeting
			o.close()
			return nil, err
		}
		o.ops = append(o.ops, func() error {
			if _, err := c.Write(b); err != nil {
				return err
			}
			_, err := io.ReadFull(c, b)
			return err
		})
	}
	return o, nil
}

// newCRR measures connects: connect, one byte each way, reset.
func newCRR(l Load) (runner, error) {
	if _, _, err := waitForServer(l.Addr); err != nil {
		return nil, err
	}
	o := &ops{close: func() {}}
	for range l.Workers {
		b := []byte{0}
		o.ops = append(o.ops, func() error {
			c, err := open(l.Addr, modeRR)
			if err != nil {
				return err
			}
			defer reset(c)
			_, err = io.ReadFull(c, b)
			return err
		})
	}
	return o, nil
}

// newUDPRR measures round trips of datagrams.
func newUDPRR(l Load) (runner, error) {
	o := &ops{}
	var conns []net.Conn
	o.close = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for range l.Workers {
		c, err := net.Dial("udp", l.Addr)
		if err != nil {
			o.close()
			return nil, err
		}
		conns = append(conns, c)
		ask := make([]byte, 9)
		answer := make([]byte, 16)
		ask[0] = modeRR
		var seq uint64
		o.ops = append(o.ops, func() error {
			seq++
			binary.BigEndian.PutUint64(ask[1:], seq)
			if err := c.SetReadDeadline(time.Now().Add(udpAnswerTimeout)); err != nil {
				return err
			}
			if _, err := c.Write(ask); err != nil {
				return err
			}
			for {
				n, err := c.Read(answer)
				if err != nil || bytes.Equal(answer[:n], ask) {
					return err
				}
			}
		})
		_ = o.ops[len(o.ops)-1]() // neighbour entries and flows are created before the measurement
	}
	return o, nil
}

// flood sends datagrams as fast as one thread can. The server counts those that arrive and reports the count on a TCP connection.
type flood struct {
	data  net.Conn
	count *net.TCPConn
	id    uint64 // of the flood, in each datagram
}

func newFlood(l Load) (runner, error) {
	if l.Size < 9 {
		return nil, fmt.Errorf("datagrams of %d bytes are too small for the id of the flood", l.Size)
	}
	data, err := net.Dial("udp", l.Addr)
	if err != nil {
		return nil, err
	}
	f := &flood{data: data, id: rand.Uint64()}
	if f.count, err = open(l.Addr, modeFlood); err == nil {
		err = binary.Write(f.count, binary.BigEndian, f.id)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *flood) Close() error {
	if f.count != nil {
		reset(f.count)
	}
	return f.data.Close()
}

func (f *flood) run(l Load) (Sample, error) {
	begin := time.Now().Add(l.Warm)
	end := begin.Add(l.Time)
	type answer struct {
		base, last, final record
		err               error
	}
	counted := make(chan answer, 1)
	_ = f.count.SetReadDeadline(end.Add(drainTime + recordTimeout))
	go func() {
		var a answer
		a.base, a.last, a.final, a.err = watch(f.count, begin, end, end.Add(drainTime))
		counted <- a
	}()
	b := make([]byte, l.Size)
	b[0] = modeFlood
	binary.BigEndian.PutUint64(b[1:], f.id)
	var sent, failed float64
	for time.Now().Before(end) {
		// An error means that the queue is full, or belongs to an earlier datagram. This datagram was not sent.
		if _, err := f.data.Write(b); err != nil {
			failed++
			continue
		}
		sent++
	}
	a := <-counted
	if a.err != nil {
		return Sample{}, a.err
	}
	span := time.Duration(a.last.When - a.base.When).Seconds()
	got := float64(a.last.Count-a.base.Count) / span
	return Sample{Seconds: l.Time.Seconds(), Ops: got * l.Time.Seconds(), Bytes: got * l.Time.Seconds() * float64(l.Size),
		Total: float64(a.final.Count) * float64(l.Size), Failed: failed,
		Loss: max(0, 1-float64(a.final.Count)/max(1, sent))}, nil
}

// newHTTP requests the same small page over and over on persistent connections.
func newHTTP(l Load) (runner, error) {
	var conns []*net.TCPConn
	o := &ops{close: func() { resetAll(conns) }}
	request := []byte("GET / HTTP/1.1\r\nHost: " + l.Addr + "\r\n\r\n")
	for range l.Workers {
		c, size, err := firstPage(l.Addr, request)
		if err != nil {
			o.close()
			return nil, err
		}
		conns = append(conns, c)
		page := make([]byte, size)
		o.ops = append(o.ops, func() error {
			if _, err := c.Write(request); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, page); err != nil {
				return err
			}
			if !bytes.HasPrefix(page, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("answer %.20q", page)
			}
			return nil
		})
	}
	return o, nil
}

// firstPage connects as soon as the server can be reached, requests the page once, and returns the size of the answer in bytes, which
// is the same for each request.
func firstPage(addr string, request []byte) (c *net.TCPConn, size int, err error) {
	for end := time.Now().Add(readyTimeout); ; time.Sleep(20 * time.Millisecond) {
		if c, size, err = tryPage(addr, request); err == nil || time.Now().After(end) {
			return c, size, err
		}
	}
}

func tryPage(addr string, request []byte) (*net.TCPConn, int, error) {
	conn, err := dialer.Dial("tcp", addr)
	if err != nil {
		return nil, 0, err
	}
	c := conn.(*net.TCPConn)
	if _, err = c.Write(request); err == nil {
		err = c.SetReadDeadline(time.Now().Add(time.Second))
	}
	var raw bytes.Buffer
	if err == nil {
		var res *http.Response
		if res, err = http.ReadResponse(bufio.NewReader(io.TeeReader(c, &raw)), nil); err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	if err != nil {
		reset(c)
		return nil, 0, fmt.Errorf("first page: %w", err)
	}
	return c, raw.Len(), nil
}

// holder opens connections, receives one byte on each, and keeps them open until Close.
type holder struct{ conns []*net.TCPConn }

func newHolder(Load) (runner, error) { return &holder{}, nil }

func (h *holder) run(l Load) (Sample, error) {
	for range l.Workers {
		c, err := open(l.Addr, modeRR)
		if err == nil {
			h.conns = append(h.conns, c)
			_ = c.SetReadDeadline(time.Now().Add(dialTimeout))
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err != nil {
			return Sample{}, fmt.Errorf("connection %d: %w", len(h.conns), err)
		}
	}
	return Sample{Ops: float64(len(h.conns))}, nil
}

func (h *holder) Close() error {
	resetAll(h.conns)
	return nil
}
