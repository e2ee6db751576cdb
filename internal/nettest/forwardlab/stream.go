package forwardlab

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Stream is a connection that can be closed for writing alone: *net.TCPConn and *GuestConn.
type Stream interface {
	net.Conn
	CloseWrite() error
}

var (
	_ Stream = (*GuestConn)(nil)
	_ Stream = (*net.TCPConn)(nil)
)

// SendString writes all of s.
func SendString(t testing.TB, c net.Conn, s string) {
	t.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(Patience))
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

// Expect reads as much as want and compares.
func Expect(t testing.TB, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b[:n], err, want)
	}
}

// ExpectEOF reads the end of the stream.
func ExpectEOF(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v; want EOF", n, err)
	}
}

// ExpectReset reads until the reset, which must come within ResetSoon.
func ExpectReset(t testing.TB, c net.Conn) {
	t.Helper()
	begin := time.Now()
	_ = c.SetReadDeadline(begin.Add(Patience))
	_, err := io.Copy(io.Discard, c)
	if !IsReset(err) {
		t.Fatalf("read ended with %v; want a reset", err)
	}
	if took := time.Since(begin); took > ResetSoon+RaceSlack {
		t.Errorf("the reset took %v", took)
	}
}

// IsReset reports whether err is the error of a reset connection. gonet's error has netstack's text instead of an errno.
func IsReset(err error) bool {
	var op *net.OpError
	return errors.Is(err, syscall.ECONNRESET) || errors.As(err, &op) && op.Err.Error() == (&tcpip.ErrConnectionReset{}).String()
}

// Reset closes c with RST.
func Reset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// Noise is a stream of n pseudo-random bytes, so that lost, repeated or reordered data changes its checksum.
func Noise(n int64, seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Transfer sends n bytes from one end to the other and closes that direction. It returns an error if other bytes arrived.
func Transfer(from, to Stream, n int64, seed byte) error {
	sent := make(chan error, 1)
	sum := crc32.New(castagnoli)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(from, sum)}, Noise(n, seed), make([]byte, 128<<10))
		sent <- errors.Join(err, from.CloseWrite())
	}()
	got := crc32.New(castagnoli)
	m, err := io.CopyBuffer(struct{ io.Writer }{got}, to, make([]byte, 128<<10))
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	if m != n || got.Sum32() != sum.Sum32() {
		return fmt.Errorf("%d bytes arrived of %d, or their checksum differs", m, n)
	}
	return nil
}

// Fill writes to c until a write has blocked for 150 ms, and returns the number of bytes written.
func Fill(t testing.TB, c net.Conn) (written int) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(150 * time.Millisecond))
		n, err := c.Write(b)
		written += n
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return written
		}
		if err != nil {
			t.Fatal(err)
		}
		if written > 256<<20 {
			t.Fatal("a connection with a peer that does not read accepts data without limit")
		}
	}
}
