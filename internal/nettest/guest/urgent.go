package guest

import (
	"encoding/json"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Urgent data (RFC 6093): both ends send "abc", an urgent "!" and "def", with a pause around the urgent byte, as a
// connection has one urgent mark at a time.

const urgentPause = 150 * time.Millisecond

// UrgentStream is what one end received: the stream without the urgent byte, and that byte with its place in the stream.
type UrgentStream struct {
	Text   string
	Urgent string // "" when no byte came as urgent
	At     int    // the urgent byte's offset in Text
}

// MarkedUrgent is the sample as it arrives with the urgent byte marked as urgent.
var MarkedUrgent = UrgentStream{Text: "abcdef", Urgent: "!", At: 3}

// sendUrgent sends the sample.
func sendUrgent(c *net.TCPConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for _, part := range []struct {
		text  string
		flags int
	}{{"abc", 0}, {"!", unix.MSG_OOB}, {"def", 0}} {
		var serr error
		err := rc.Write(func(fd uintptr) bool {
			serr = unix.Sendto(int(fd), []byte(part.text), part.flags|unix.MSG_NOSIGNAL, nil)
			return serr != syscall.EAGAIN
		})
		if err != nil {
			return err
		}
		if serr != nil {
			return serr
		}
		time.Sleep(urgentPause)
	}
	return nil
}

// receiveUrgent reads to the end of the stream.
func receiveUrgent(c *net.TCPConn) (s UrgentStream, outcome Outcome) {
	f, err := c.File() // a copy of the descriptor that this function polls itself
	if err != nil {
		return s, OutcomeOf(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	end := time.Now().Add(patience)
	b := make([]byte, 256)
	for time.Now().Before(end) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLPRI}}
		if n, err := unix.Poll(p, int(urgentPause.Milliseconds())); n <= 0 || err != nil {
			continue
		}
		if p[0].Revents&unix.POLLPRI != 0 {
			if at, err := unix.IoctlGetInt(fd, unix.SIOCATMARK); err == nil && at == 1 {
				n, _, err := unix.Recvfrom(fd, b[:1], unix.MSG_OOB|unix.MSG_DONTWAIT)
				if err == nil && n == 1 {
					s.Urgent, s.At = string(b[:1]), len(s.Text)
				}
			}
		}
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			time.Sleep(5 * time.Millisecond) // the urgent byte alone is not readable
		case err != nil:
			return s, OutcomeOf(err)
		case n == 0:
			return s, OK
		}
		s.Text += string(b[:max(n, 0)])
	}
	return s, TimedOut
}

// serveUrgent sends the sample, receives one, and sends what it received as JSON.
func serveUrgent(c *net.TCPConn) {
	defer c.Close()
	if sendUrgent(c) != nil {
		return
	}
	got, outcome := receiveUrgent(c)
	if outcome != OK {
		got.Text += " " + string(outcome)
	}
	_ = json.NewEncoder(c).Encode(got)
}

// ExchangeUrgent connects to an Urgent server, sends the sample and receives the server's.
type ExchangeUrgent struct{ To Target }

// UrgentExchange is what each end received.
type UrgentExchange struct {
	Outcome        Outcome
	Client, Server UrgentStream
}

// WantUrgent is the exchange in which both ends received this.
func WantUrgent(s UrgentStream) UrgentExchange { return UrgentExchange{Client: s, Server: s} }

func (op ExchangeUrgent) run() (UrgentExchange, error) {
	c, err := op.To.dial(patience)
	if err != nil {
		return UrgentExchange{Outcome: OutcomeOf(err)}, nil
	}
	defer c.Close()
	return op.On(c), nil
}

// On is the exchange on an open connection.
func (ExchangeUrgent) On(c net.Conn) (x UrgentExchange) {
	t := c.(*net.TCPConn)
	if err := sendUrgent(t); err != nil {
		return UrgentExchange{Outcome: OutcomeOf(err)}
	}
	if err := t.CloseWrite(); err != nil {
		return UrgentExchange{Outcome: OutcomeOf(err)}
	}
	x.Client, x.Outcome = receiveUrgent(t)
	if x.Outcome != OK {
		return x
	}
	// The server's sample ends where its report begins.
	sample, report, _ := strings.Cut(x.Client.Text, "{")
	x.Client.Text = sample
	x.Outcome = OutcomeOf(json.Unmarshal([]byte("{"+report), &x.Server))
	return x
}
