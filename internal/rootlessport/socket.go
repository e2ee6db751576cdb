package rootlessport

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"rootlessnet/internal/unixsock"
)

// maxMessage is the maximum size in bytes of a packet, which holds a JSON string with an address.
const maxMessage = 1024

// addressTimeout is how long Podman may take to send the address after it has connected.
const addressTimeout = 10 * time.Second

// addressSocket receives the container's new address from Podman, after Podman has connected it to another network.
type addressSocket struct {
	l      *net.UnixListener
	change func(netip.Addr) error
	log    *slog.Logger
	path   string
	wg     sync.WaitGroup

	mu     sync.Mutex
	conn   *net.UnixConn // connection that is being served; guarded by mu
	closed bool          // guarded by mu
}

// listenAddress starts to serve a socket at path. It calls change for each new address, never concurrently.
func listenAddress(path string, change func(netip.Addr) error, log *slog.Logger) (*addressSocket, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		_ = os.Remove(path) // a helper that was killed has left it behind
	}
	l, err := listenPacket(path)
	if err != nil {
		return nil, fmt.Errorf("socket for the container's address: %w", err)
	}
	s := &addressSocket{l: l, path: path, change: change, log: log}
	s.wg.Go(s.run)
	return s, nil
}

// listenPacket listens at path, also if the path is too long for a socket address.
func listenPacket(path string) (*net.UnixListener, error) {
	short, done, err := unixsock.ShortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: short, Net: "unixpacket"})
	if err == nil {
		l.SetUnlinkOnClose(false) // a short path is invalid by then; close removes the file
	}
	return l, err
}

func (s *addressSocket) run() {
	for {
		c, err := s.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Warn("a connection to the socket for the container's address was not accepted", "err", err)
			time.Sleep(acceptPause)
			continue
		}
		if s.hold(c) {
			s.serve(c)
		}
		s.hold(nil)
		_ = c.Close()
	}
}

// hold stores the connection that close must end. It returns false after close.
func (s *addressSocket) hold(c *net.UnixConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = c
	return !s.closed
}

func (s *addressSocket) serve(c *net.UnixConn) {
	_ = c.SetDeadline(time.Now().Add(addressTimeout))
	answer := "OK"
	if err := s.receive(c); err != nil {
		s.log.Warn("the container's address was not changed", "err", err)
		answer = err.Error()
	}
	_, _ = c.Write([]byte(answer))
}

func (s *addressSocket) receive(c *net.UnixConn) error {
	buf := make([]byte, maxMessage)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	var text string
	if err := json.Unmarshal(buf[:n], &text); err != nil {
		return fmt.Errorf("not a JSON string: %w", err)
	}
	addr, err := parseChild(text)
	if err != nil {
		return err
	}
	return s.change(addr)
}

func (s *addressSocket) close() {
	s.mu.Lock()
	s.closed = true
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.mu.Unlock()
	_ = s.l.Close()
	_ = os.Remove(s.path)
	s.wg.Wait()
}
