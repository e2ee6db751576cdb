package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of sockets, as one word: mark=N, ttl=N, device=NAME, from=ADDR:PORT, fastopen (data in the SYN, without a cookie),
// mptcp, timeout=DURATION; with commas between them.

func socketOptions(list string) (lc net.ListenConfig, d net.Dialer, err error) {
	var set []func(fd int) error
	timeout := patience
	for _, o := range strings.Split(list, ",") {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "mark":
			n, err := strconv.ParseUint(value, 0, 32)
			if err != nil {
				return lc, d, err
			}
			set = append(set, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(n)) })
		case "ttl":
			n, err := strconv.Atoi(value)
			if err != nil {
				return lc, d, err
			}
			set = append(set, func(fd int) error {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, n); err == nil {
					return nil
				}
				return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, n)
			})
		case "device":
			set = append(set, func(fd int) error { return unix.BindToDevice(fd, value) })
		case "from":
			a, err := net.ResolveTCPAddr("tcp", value)
			if err != nil {
				return lc, d, err
			}
			d.LocalAddr = a
			set = append(set, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		case "timeout":
			if timeout, err = time.ParseDuration(value); err != nil {
				return lc, d, err
			}
		case "fastopen":
			set = append(set, func(fd int) error {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
					return err
				}
				return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
			})
		case "mptcp":
			d.SetMultipathTCP(true)
			lc.SetMultipathTCP(true)
		case "":
		default:
			return lc, d, fmt.Errorf("no socket option called %q", name)
		}
	}
	control := func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			for _, f := range set {
				if err == nil {
					err = f(int(fd))
				}
			}
		})
		if err == nil {
			err = cerr
		}
		return err
	}
	lc.Control, d.Control, d.Timeout = control, control, timeout
	return lc, d, nil
}

// exchangeAs: OPTIONS ADDR [TEXT]. Is exchange from a socket with options.
func exchangeAs(args []string) (string, error) {
	_, d, err := socketOptions(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	c, err := d.Dial("tcp", arg(args, 1, ""))
	if err != nil {
		return Errno(err), nil
	}
	defer c.Close()
	text := arg(args, 2, "hello")
	if strings.Contains(args[0], "fastopen") {
		// The SYN leaves with the first byte, and to close a half of what is not open yet would abort it.
		if _, err := io.WriteString(c, text); err != nil {
			return Errno(err), nil
		}
		if err := awaitEstablished(c); err != nil {
			return Errno(err), nil
		}
		text = ""
	}
	return exchangeWithin(c, text, d.Timeout)
}

// awaitEstablished waits until the peer has said something, without reading it.
func awaitEstablished(c net.Conn) error {
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
	if err == nil {
		err = perr
	}
	return err
}

// serveAs: OPTIONS ADDR. Is serve-tcp with a listener that has options.
func serveAs(args []string) (string, error) {
	lc, _, err := socketOptions(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	l, err := lc.Listen(context.Background(), "tcp", arg(args, 1, ":0"))
	if err != nil {
		return "", err
	}
	go AcceptAll(l, func(c *net.TCPConn) { Echo(c) })
	return l.Addr().String(), nil
}

// serveSilent: ADDR. Accepts and never reads.
func serveSilent(args []string) (string, error) {
	return listenAny(args, Silent)
}

// silent are the connections of Silent, which nothing else refers to.
var silent = make(chan *net.TCPConn, 1<<16)

// Silent keeps the connection and never reads.
func Silent(c *net.TCPConn) { silent <- c }

// fill: ADDR N. Opens n connections and writes to each until nothing is taken for a while; they stay open. Prints how
// many bytes were taken in all.
func fill(args []string) (string, error) {
	n, err := number(args, 1, 1)
	if err != nil {
		return "", err
	}
	sum := 0
	for range n {
		c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
		if err != nil {
			return Errno(err), nil
		}
		silent <- c.(*net.TCPConn)
		took, err := Fill(c)
		if err != nil {
			return Errno(err), nil
		}
		sum += took
	}
	return fmt.Sprint(sum), nil
}

// fillPause is how long a connection must not take anything to be full.
const fillPause = 300 * time.Millisecond

// Fill writes until nothing is taken for a while, and returns how much was.
func Fill(c net.Conn) (sum int, err error) {
	const most = 1 << 30
	b := make([]byte, 64<<10)
	for sum < most {
		if err := c.SetWriteDeadline(time.Now().Add(fillPause)); err != nil {
			return sum, err
		}
		n, err := c.Write(b)
		sum += n
		if os.IsTimeout(err) {
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
	}
	return sum, fmt.Errorf("%d bytes were taken by somebody who does not read", sum)
}

// serveClose: ADDR. Serves CloseTogether.
func serveClose(args []string) (string, error) {
	return listenAny(args, func(c *net.TCPConn) { _, _ = CloseTogether(c) })
}

// closeTogether: ADDR N. Does it with n connections; prints "same", or what went wrong first.
func closeTogether(args []string) (string, error) {
	n, err := number(args, 1, 1)
	if err != nil {
		return "", err
	}
	for range n {
		c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
		if err != nil {
			return Errno(err), nil
		}
		if got, err := CloseTogether(c); err != nil || got != "same" {
			return got, err
		}
	}
	return "same", nil
}

// CloseTogether is one end of a connection whose both ends greet and close their half without waiting for the other's:
// both must get the greeting and the end.
func CloseTogether(c net.Conn) (string, error) {
	const greeting = "good bye"
	defer c.Close()
	switch got, err := Exchange(c, greeting); {
	case err != nil:
		return "", err
	case got != greeting:
		return fmt.Sprintf("got %q", got), nil
	}
	return "same", nil
}

// serveTell: ADDR. Serves Tell, and keeps what came for tell.
func serveTell(args []string) (string, error) {
	return listenAny(args, func(c *net.TCPConn) { told <- Tell(c) })
}

var told = make(chan string, 1<<10)

// tell prints what the next client of serve-tell ended with.
func tell([]string) (string, error) {
	select {
	case s := <-told:
		return s, nil
	case <-time.After(patience):
		return "TIMEOUT", nil
	}
}

// Tell greets with a newline, reads to the end and says how many bytes there were and what the end was: "BYTES EOF", or
// "BYTES ERRNO".
func Tell(c *net.TCPConn) string {
	defer c.Close()
	if _, err := fmt.Fprintln(c); err != nil {
		return "0 " + Errno(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if err != nil {
		return fmt.Sprintf("%d %s", n, Errno(err))
	}
	return fmt.Sprintf("%d EOF", n)
}

// abort: ADDR. Is Abort on a connection to a Tell.
func abort(args []string) (string, error) {
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
	if err != nil {
		return Errno(err), nil
	}
	return Abort(c)
}

// Abort waits for the greeting, sends a byte, gives it time to arrive, and resets the connection.
func Abort(c net.Conn) (string, error) {
	defer c.Close()
	if err := greeted(c); err != nil {
		return Errno(err), nil
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return Errno(err), nil
	}
	time.Sleep(100 * time.Millisecond)
	return "ok", c.(*net.TCPConn).SetLinger(0)
}
