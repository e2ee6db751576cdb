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

// Modes of the server, the first byte of a connection or of a datagram.
const (
	modeOut     = 'o' // the server reads, and sends a record every recordEvery
	modeIn      = 'i' // after one further byte the server writes until the client closes the connection
	modeRR      = 'r' // the server sends one byte, and then sends each byte or datagram back
	modeAddress = 'w' // the server sends the client's address, a line
	modeFlood   = 'f' // the next 8 bytes are the id of a flood: the server counts its datagrams, and sends a record every recordEvery
)

const (
	recordEvery = 20 * time.Millisecond
	// pageSize is the size in bytes of the body of the HTTP server's page.
	pageSize = 1 << 10
)

// server serves one port or several.
type server struct {
	floods sync.Map // id -> *atomic.Uint64
}

// serve serves TCP and UDP on count ports from port on, until stdin ends. It prints "ready" when all sockets are open. With several
// ports, connects are not slowed by sockets of earlier measurements in TIME_WAIT.
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
		// As large as the machine allows, because datagrams that are lost here would count as losses of the helper.
		_ = u.SetReadBuffer(4 << 20)
		go s.datagrams(u)
		go s.accept(l)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// serveHTTP serves one small page by HTTP, until stdin ends.
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
			time.Sleep(10 * time.Millisecond) // the limit of open files is reached: wait until some are closed
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
			continue // an ICMP error that an earlier answer caused, or a datagram that no client sent
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
		go sendRecords(c, &n, done)
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
	case modeAddress:
		_, _ = fmt.Fprintln(c, c.RemoteAddr())
		_, _ = io.Copy(io.Discard, c) // until the client resets the connection
	case modeFlood:
		var id uint64
		if err := binary.Read(c, binary.BigEndian, &id); err != nil {
			return
		}
		done := make(chan struct{})
		go sendRecords(c, s.flood(id), done)
		_, _ = io.Copy(io.Discard, c)
		close(done)
		s.floods.Delete(id)
	}
}

// sendRecords writes a record every recordEvery, until done is closed or an error.
func sendRecords(c net.Conn, n *atomic.Uint64, done <-chan struct{}) {
	t := time.NewTicker(recordEvery)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			// The time of the count, not of the tick, which comes late if all cores are busy.
			if err := binary.Write(c, binary.BigEndian, record{When: time.Now().UnixNano(), Count: n.Load()}); err != nil {
				return
			}
		}
	}
}
