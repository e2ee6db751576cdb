package guest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Server is what a TCP server does with each client.
type Server string

const (
	// Echo greets with the client's address and a newline, then echoes until the client's end, and closes.
	Echo Server = "echo"
	// ResetAfterByte greets with a newline, waits for one byte and resets the connection.
	ResetAfterByte Server = "reset after a byte"
	// SumAfterEnd reads until the client's end, and only then answers with the length and the hash of what came.
	SumAfterEnd Server = "sum after the end"
	// Produce sends the data that Download expects, and closes.
	Produce Server = "produce"
	// Silent keeps the connection and never reads.
	Silent Server = "silent"
	// ClosingTogether is the other end of CloseTogether.
	ClosingTogether Server = "closing together"
	// Reporting is ReportEnd, whose result AwaitReport returns.
	Reporting Server = "reporting"
	// Urgent is the other end of ExchangeUrgent.
	Urgent Server = "urgent"
)

// Handle serves one client.
func (s Server) Handle(c *net.TCPConn) {
	switch s {
	case Echo:
		echo(c)
	case ResetAfterByte:
		resetAfterByte(c)
	case SumAfterEnd:
		sumAfterEnd(c)
	case Produce:
		produce(c)
	case Silent:
		kept <- c
	case ClosingTogether:
		_ = CloseTogether{}.On(c)
	case Reporting:
		reports <- ReportEnd(c)
	case Urgent:
		serveUrgent(c)
	default:
		panic(fmt.Sprintf("guest: no server called %q", s))
	}
}

// ServeTCP listens and serves every client on a goroutine of its own. The result is the listener's address.
type ServeTCP struct {
	Server Server
	Addr   netip.Addr // the zero Addr for every address of both families
	Port   uint16     // 0 for a free one
	Socket Socket
}

func (op ServeTCP) run() (netip.AddrPort, error) {
	lc := op.Socket.listenConfig()
	network := "tcp"
	if op.Addr.IsValid() && op.Addr.IsUnspecified() && op.Addr.Is4() {
		network = "tcp4" // "tcp" would take 0.0.0.0 for both families
	}
	l, err := lc.Listen(context.Background(), network, listenAddress(op.Addr, op.Port))
	if err != nil {
		return netip.AddrPort{}, err
	}
	go AcceptAll(l, op.Server.Handle)
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// listenAddress is the address in package net's form.
func listenAddress(addr netip.Addr, port uint16) string {
	if !addr.IsValid() {
		return fmt.Sprintf(":%d", port)
	}
	return netip.AddrPortFrom(addr, port).String()
}

// AcceptAll runs serve for each client on a goroutine of its own until l is closed. Being out of descriptors does not end
// it.
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

func echo(c *net.TCPConn) {
	defer c.Close()
	if _, err := fmt.Fprintln(c, c.RemoteAddr()); err != nil {
		return
	}
	// The Reader and the Writer are wrapped, since package net would otherwise splice with a pipe for each connection.
	_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4096))
	_ = c.CloseWrite()
}

func resetAfterByte(c *net.TCPConn) {
	defer c.Close()
	if _, err := fmt.Fprintln(c); err != nil {
		return
	}
	_, _ = io.ReadFull(c, make([]byte, 1))
	_ = c.SetLinger(0)
}

func sumAfterEnd(c *net.TCPConn) {
	defer c.Close()
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil {
		return
	}
	fmt.Fprintf(c, "%d %x", n, h.Sum(nil))
}

// kept are connections that stay open although nothing reads them; only the channel refers to them.
var kept = make(chan *net.TCPConn, 1<<16)

// End is how a connection ended for its reader.
type End struct {
	Bytes   int64   // that came before
	Outcome Outcome // EndOfStream, or an errno
}

// ReportEnd greets with a newline, reads to the end and returns how much came and what the end was.
func ReportEnd(c *net.TCPConn) End {
	defer c.Close()
	if _, err := fmt.Fprintln(c); err != nil {
		return End{0, OutcomeOf(err)}
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if err != nil {
		return End{n, OutcomeOf(err)}
	}
	return End{n, EndOfStream}
}

// reports are the results of the Reporting server.
var reports = make(chan End, 1<<10)

// AwaitReport waits for the end of the next client of a Reporting server.
type AwaitReport struct{}

func (AwaitReport) run() (End, error) {
	select {
	case e := <-reports:
		return e, nil
	case <-time.After(patience):
		return End{Outcome: TimedOut}, nil
	}
}
