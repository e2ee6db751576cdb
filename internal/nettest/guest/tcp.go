package guest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds what is expected to happen soon.
const patience = 5 * time.Second

// Target is what an operation connects or sends to. Host is an address, or a name that is resolved inside.
type Target struct {
	Host string
	Port uint16
}

// To is the target with that address.
func To(a netip.AddrPort) Target { return Target{a.Addr().String(), a.Port()} }

func (t Target) String() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

func (t Target) dial(timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", t.String(), timeout)
}

// Connect connects and closes again.
type Connect struct {
	To      Target
	Timeout time.Duration // 0 for a few seconds
}

func (op Connect) run() (Timed, error) {
	if op.Timeout == 0 {
		op.Timeout = patience
	}
	begin := time.Now()
	c, err := op.To.dial(op.Timeout)
	result := timed(begin, err)
	if err == nil {
		c.Close()
	}
	return result, nil
}

// Exchange connects to an Echo server, sends Text, closes its half and reads to the end.
type Exchange struct {
	To     Target
	Text   string
	Socket Socket
}

// Echoed is the answer of a server that sends the client's address and then echoes.
type Echoed struct {
	Outcome Outcome
	Client  netip.AddrPort // the client as the server sees it
	Text    string         // what came back
}

func (op Exchange) run() (Echoed, error) {
	d := op.Socket.dialer()
	c, err := d.Dial("tcp", op.To.String())
	if err != nil {
		return Echoed{Outcome: OutcomeOf(err)}, nil
	}
	defer c.Close()
	if op.Socket.FastOpen {
		return op.fastOpen(c), nil
	}
	return op.On(c), nil
}

// On is the exchange on an open connection.
func (op Exchange) On(c net.Conn) Echoed {
	return parseEchoed(exchange(c, op.Text, op.Socket.timeout()))
}

// fastOpen has the SYN leave with the first byte. To close a half of a connection that is not open yet would abort it.
func (op Exchange) fastOpen(c net.Conn) Echoed {
	if _, err := io.WriteString(c, op.Text); err != nil {
		return Echoed{Outcome: OutcomeOf(err)}
	}
	if err := awaitData(c); err != nil {
		return Echoed{Outcome: OutcomeOf(err)}
	}
	return parseEchoed(exchange(c, "", op.Socket.timeout()))
}

// parseEchoed splits the greeting of an Echo server from the echo.
func parseEchoed(all string, err error) Echoed {
	if err != nil {
		return Echoed{Outcome: OutcomeOf(err)}
	}
	greeting, text, _ := strings.Cut(all, "\n")
	client, err := netip.ParseAddrPort(greeting)
	return Echoed{OutcomeOf(err), client, text}
}

// exchange sends text, closes its half of the connection and reads to the end.
func exchange(c net.Conn, text string, within time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	all, err := io.ReadAll(c)
	return string(all), err
}

// awaitData waits until the peer has sent something, and does not read it.
func awaitData(c net.Conn) error {
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var b [1]byte
	var perr error
	err = rc.Read(func(fd uintptr) bool {
		_, _, perr = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return perr != unix.EAGAIN
	})
	return errors.Join(err, perr)
}

// HalfClose connects to a SumAfterEnd server, sends Bytes bytes, closes its half, and compares the answer: OK when the
// server got every byte and its answer came after the half was closed.
type HalfClose struct {
	To    Target
	Bytes int
}

func (op HalfClose) run() (Outcome, error) {
	c, err := op.To.dial(patience)
	if err != nil {
		return OutcomeOf(err), nil
	}
	defer c.Close()
	return op.On(c), nil
}

// On is the transfer on an open connection.
func (op HalfClose) On(c net.Conn) Outcome {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return OutcomeOf(err)
	}
	data := pattern(op.Bytes)
	if _, err := c.Write(data); err != nil {
		return OutcomeOf(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return OutcomeOf(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return OutcomeOf(err)
	}
	if want := fmt.Sprintf("%d %x", op.Bytes, sha256.Sum256(data)); string(answer) != want {
		return Outcome(fmt.Sprintf("the server got %q, want %q", answer, want))
	}
	return OK
}

// pattern is n bytes in which a piece that is lost, repeated or moved shows.
func pattern(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*7>>3) ^ byte(i>>16)
	}
	return data
}

// DownloadSize is how many bytes a Produce server sends.
const DownloadSize = 16 << 20

func produce(c *net.TCPConn) {
	defer c.Close()
	_, _ = c.Write(pattern(DownloadSize))
}

// Download reads from a Produce server: OK when every byte came, and the end after them.
type Download struct{ To Target }

func (op Download) run() (Outcome, error) {
	c, err := op.To.dial(patience)
	if err != nil {
		return OutcomeOf(err), nil
	}
	defer c.Close()
	return op.On(c), nil
}

// On reads from an open connection.
func (Download) On(c net.Conn) Outcome {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return OutcomeOf(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return OutcomeOf(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(pattern(DownloadSize)) {
		return Outcome(fmt.Sprintf("%d bytes came, which are not the %d that were sent", len(got), DownloadSize))
	}
	return OK
}

// awaitGreeting reads the line that a server sends first.
func awaitGreeting(c net.Conn) error {
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
