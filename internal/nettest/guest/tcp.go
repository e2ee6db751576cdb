package guest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience bounds what is expected to happen soon.
const patience = 5 * time.Second

// listenAny is net.Listen; addr may have the form :PORT.
func listenAny(args []string, serve func(*net.TCPConn)) (string, error) {
	l, err := net.Listen(arg(args, 1, "tcp"), arg(args, 0, ":0"))
	if err != nil {
		return "", err
	}
	go AcceptAll(l, serve)
	return l.Addr().String(), nil
}

// AcceptAll runs serve for each client on a goroutine of its own until l is closed. Being out of descriptors is not
// the end.
func AcceptAll(l net.Listener, serve func(*net.TCPConn)) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond)
		default:
			go serve(c.(*net.TCPConn))
		}
	}
}

// serveTCP: ADDR [NETWORK]. Greets each client with its address and a newline, then echoes.
func serveTCP(args []string) (string, error) {
	return listenAny(args, func(c *net.TCPConn) { Echo(c) })
}

// Echo greets with the peer's address and a newline, then echoes until EOF, passes EOF back and closes.
func Echo(c *net.TCPConn) {
	defer c.Close()
	if _, err := fmt.Fprintln(c, c.RemoteAddr()); err != nil {
		return
	}
	// Hidden behind a plain Reader and Writer: package net would splice, with a pipe for each connection.
	_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4096))
	_ = c.CloseWrite()
}

// serveRST: ADDR. Greets, waits for one byte, then resets.
func serveRST(args []string) (string, error) { return listenAny(args, ResetAfterByte) }

// ResetAfterByte greets with a newline, waits for one byte and resets the connection.
func ResetAfterByte(c *net.TCPConn) {
	defer c.Close()
	if _, err := fmt.Fprintln(c); err != nil {
		return
	}
	_, _ = io.ReadFull(c, make([]byte, 1))
	_ = c.SetLinger(0)
}

// serveHalf: ADDR. Reads all until EOF, then answers as SumAfterEOF.
func serveHalf(args []string) (string, error) { return listenAny(args, SumAfterEOF) }

// SumAfterEOF reads until EOF and only then answers with the length and hash of what came, and closes.
func SumAfterEOF(c *net.TCPConn) {
	defer c.Close()
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil {
		return
	}
	fmt.Fprintf(c, "%d %x", n, h.Sum(nil))
}

// connect: ADDR [TIMEOUT]. Prints "connected" or the errno.
func connect(args []string) (string, error) {
	timeout, err := duration(args, 1, patience)
	if err != nil {
		return "", err
	}
	begin := time.Now()
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), timeout)
	took := time.Since(begin).Milliseconds()
	if err != nil {
		return fmt.Sprintf("%s %d", Errno(err), took), nil
	}
	defer c.Close()
	return fmt.Sprintf("connected %d", took), nil
}

// exchange: ADDR TEXT. Connects to an Echo and prints "PEER TEXT": the greeting and what came back.
func exchange(args []string) (string, error) {
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
	if err != nil {
		return Errno(err), nil
	}
	defer c.Close()
	return Exchange(c, arg(args, 1, "hello"))
}

// Exchange is the client of Echo on an open connection: it sends text, closes its half, and returns the greeting and
// the echo with a space between.
func Exchange(c net.Conn, text string) (string, error) { return exchangeWithin(c, text, patience) }

func exchangeWithin(c net.Conn, text string, within time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return Errno(err), nil
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return Errno(err), nil
	}
	all, err := io.ReadAll(c)
	if err != nil {
		return Errno(err), nil
	}
	return strings.Replace(string(all), "\n", " ", 1), nil
}

// awaitReset: ADDR. Connects to a ResetAfterByte, provokes the reset and prints "ERRNO MS": what the read came to and
// how long it took.
func awaitReset(args []string) (string, error) {
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
	if err != nil {
		return Errno(err), nil
	}
	defer c.Close()
	return AwaitReset(c)
}

// AwaitReset is the client of ResetAfterByte.
func AwaitReset(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return Errno(err), nil
	}
	begin := time.Now()
	if _, err := c.Write(b); err != nil {
		return Errno(err), nil
	}
	_, err := c.Read(b)
	took := time.Since(begin).Milliseconds()
	switch {
	case err == nil:
		return fmt.Sprintf("DATA %d", took), nil
	case errors.Is(err, io.EOF):
		return fmt.Sprintf("EOF %d", took), nil
	}
	return fmt.Sprintf("%s %d", Errno(err), took), nil
}

// halfClose: ADDR BYTES. The client of SumAfterEOF; prints "same" when the far side got every byte and its answer came
// after our half was closed.
func halfClose(args []string) (string, error) {
	n, err := number(args, 1, 1<<20)
	if err != nil {
		return "", err
	}
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
	if err != nil {
		return Errno(err), nil
	}
	defer c.Close()
	return HalfClose(c, n)
}

// HalfClose sends n bytes, closes its half, and compares the answer of SumAfterEOF.
func HalfClose(c net.Conn, n int) (string, error) {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	if _, err := c.Write(data); err != nil {
		return Errno(err), nil
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return Errno(err), nil
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return Errno(err), nil
	}
	if want := fmt.Sprintf("%d %x", n, sha256.Sum256(data)); string(answer) != want {
		return fmt.Sprintf("got %q, want %q", answer, want), nil
	}
	return "same", nil
}

// held are the connections of hold.
var held struct {
	sync.Mutex
	conns []net.Conn
}

// hold: ADDR N. Opens n connections to an Echo, reads its greeting on each, and keeps them. Prints how many there are,
// and what the first failure was.
func hold(args []string) (string, error) {
	n, err := number(args, 1, 1)
	if err != nil {
		return "", err
	}
	held.Lock()
	defer held.Unlock()
	failure := ""
	for range n {
		c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
		if err == nil {
			err = greeted(c)
		}
		if err != nil {
			failure = " " + Errno(err)
			break
		}
		held.conns = append(held.conns, c)
	}
	return fmt.Sprintf("%d%s", len(held.conns), failure), nil
}

// greeted reads the line that an Echo says first.
func greeted(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	b := make([]byte, 1)
	for b[0] != '\n' {
		if _, err := io.ReadFull(c, b); err != nil {
			c.Close()
			return err
		}
	}
	return nil
}

// dropHeld closes the connections of hold.
func dropHeld([]string) (string, error) {
	held.Lock()
	defer held.Unlock()
	for _, c := range held.conns {
		c.Close()
	}
	held.conns = nil
	return "dropped", nil
}

// holdEcho: [PATIENCE]. Sends one byte there and back on every connection of hold, and prints how many answered.
func holdEcho(args []string) (string, error) {
	patience, err := duration(args, 0, patience)
	if err != nil {
		return "", err
	}
	held.Lock()
	defer held.Unlock()
	answered := 0
	var first error
	for i, c := range held.conns {
		want := byte(i)
		got := make([]byte, 1)
		err := c.SetDeadline(time.Now().Add(patience))
		if err == nil {
			_, err = c.Write([]byte{want})
		}
		if err == nil {
			_, err = io.ReadFull(c, got)
		}
		if err == nil && got[0] == want {
			answered++
		} else if first == nil {
			first = fmt.Errorf("connection %d: %w", i, err)
		}
	}
	if first != nil && !errors.Is(first, syscall.ECONNRESET) {
		return fmt.Sprintf("%d %v", answered, first), nil
	}
	return fmt.Sprint(answered), nil
}
