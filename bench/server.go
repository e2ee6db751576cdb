package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// The first byte of a connection, or of a datagram, tells the server what the client wants.
const (
	modeOut   = 'o' // the server reads, and says every recordEvery how much (record)
	modeIn    = 'i' // with the next byte the server begins to write, until the client is gone
	modeRR    = 'r' // the server answers each byte with itself, and greets with one; or sends the datagram back
	modeWho   = 'w' // the server answers with the client's address, a line
	modeFlood = 'f' // the next 8 bytes are an id: the server counts its datagrams, and says it every recordEvery
)

const (
	recordEvery = 20 * time.Millisecond
	// pageSize is the body of the HTTP server's page.
	pageSize = 1 << 10
)

// server serves one port, or several next to each other.
type server struct {
	floods sync.Map // id -> *atomic.Uint64
}

// serve runs the server for TCP and UDP on count ports from the given one on, until stdin ends. It prints "ready" once
// all sockets are open. Several ports are there for connects that do not meet the TIME_WAIT of those before them.
func serve(port, count int) error {
	s := &server{}
	var closers []io.Closer
	defer func() {
		for _, c := range closers {
			c.Close()
		}
	}()
	for p := port; p < port+count; p++ {
		l, err := listenConfig.Listen(context.Background(), "tcp", fmt.Sprintf("[::]:%d", p))
		if err != nil {
			return err
		}
		closers = append(closers, l)
		u, err := net.ListenUDP("udp", &net.UDPAddr{Port: p})
		if err != nil {
			return err
		}
		closers = append(closers, u)
		// As much as a host's administrator lets us have: what is lost here is not the helper's loss.
		_ = u.SetReadBuffer(4 << 20)
		go s.datagrams(u)
		go s.accept(l)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// serveHTTP is an HTTP server of one small page, until stdin ends.
func serveHTTP(port int) error {
	l, err := listenConfig.Listen(context.Background(), "tcp", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		return err
	}
	page := bytes.Repeat([]byte("."), pageSize)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) })}
	fmt.Println("ready")
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		srv.Close()
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *server) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: some will be closed
			continue
		}
		go s.conn(c.(*net.TCPConn))
	}
}

func (s *server) datagrams(u *net.UDPConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := u.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 9 {
			continue // an ICMP error of an earlier answer, or a stray
		}
		if b[0] == modeFlood {
			s.flood(binary.BigEndian.Uint64(b[1:])).Add(1)
			continue
		}
		_, _ = u.WriteToUDPAddrPort(b[:n], from)
	}
}

func (s *server) flood(id uint64) *atomic.Uint64 {
	if n, ok := s.floods.Load(id); ok {
		return n.(*atomic.Uint64)
	}
	n, _ := s.floods.LoadOrStore(id, new(atomic.Uint64))
	return n.(*atomic.Uint64)
}

func (s *server) conn(c *net.TCPConn) {
	defer c.Close()
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	switch b[0] {
	case modeOut:
		var n atomic.Uint64
		done := make(chan struct{})
		go say(c, &n, done)
		_ = drain(c, &n)
		close(done)
	case modeIn:
		if _, err := io.ReadFull(c, b); err == nil {
			fill(c)
		}
	case modeRR:
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
		}
	case modeWho:
		_, _ = fmt.Fprintln(c, c.RemoteAddr())
		_, _ = io.Copy(io.Discard, c) // the client closes first, and resets
	case modeFlood:
		var id uint64
		if err := binary.Read(c, binary.BigEndian, &id); err != nil {
			return
		}
		done := make(chan struct{})
		go say(c, s.flood(id), done)
		_, _ = io.Copy(io.Discard, c)
		close(done)
		s.floods.Delete(id)
	}
}

// say writes a record every recordEvery until done or an error.
func say(c net.Conn, n *atomic.Uint64, done <-chan struct{}) {
	t := time.NewTicker(recordEvery)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			// Now, not when the tick was due: with all cores busy it comes late.
			if err := binary.Write(c, binary.BigEndian, record{When: time.Now().UnixNano(), Count: n.Load()}); err != nil {
				return
			}
		}
	}
}
