package guest

import (
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Urgent data: both ends send "abc", an urgent "!" and "def", with a pause around the urgent byte, as there is one mark at
// a time. What comes is told as TEXT, the stream without the urgent byte, and where that was, or "none".

const urgentPause = 150 * time.Millisecond

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
func receiveUrgent(c *net.TCPConn) (string, error) {
	f, err := c.File() // polled by ourselves
	if err != nil {
		return "", err
	}
	defer f.Close()
	fd := int(f.Fd())
	var text []byte
	urgent := "none"
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
					urgent = fmt.Sprintf("%s at %d", b[:1], len(text))
				}
			}
		}
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			time.Sleep(5 * time.Millisecond) // the urgent byte alone is not readable
		case err != nil:
			return Errno(err), nil
		case n == 0:
			return fmt.Sprintf("%s %s", text, urgent), nil
		}
		text = append(text, b[:max(n, 0)]...)
	}
	return fmt.Sprintf("%s %s TIMEOUT", text, urgent), nil
}

// serveUrgent: ADDR. Serves UrgentServer.
func serveUrgent(args []string) (string, error) { return listenAny(args, UrgentServer) }

// UrgentServer sends the sample, receives one, and tells what it received.
func UrgentServer(c *net.TCPConn) {
	defer c.Close()
	if sendUrgent(c) != nil {
		return
	}
	got, err := receiveUrgent(c)
	if err != nil {
		got = err.Error()
	}
	_, _ = io.WriteString(c, " "+got)
}

// urgent: ADDR. Is UrgentClient.
func urgent(args []string) (string, error) {
	c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
	if err != nil {
		return Errno(err), nil
	}
	defer c.Close()
	return UrgentClient(c)
}

// UrgentClient sends the sample and receives that of an UrgentServer. It returns the stream and the urgent byte of the
// server, whose stream ends with what it got: "abcdef abcdef ! at 3 ! at 3" when all is right.
func UrgentClient(c net.Conn) (string, error) {
	t := c.(*net.TCPConn)
	if err := sendUrgent(t); err != nil {
		return Errno(err), nil
	}
	if err := t.CloseWrite(); err != nil {
		return Errno(err), nil
	}
	return receiveUrgent(t)
}
