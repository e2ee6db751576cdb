package doctor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// wantFiles is the limit of open files for 10,000 connections, the quarter of the limit that UDP flows may use, and the
	// descriptors of the process itself.
	wantFiles = 16384
	// wantBuffer is the size in bytes of what 1 Gbit/s delivers in 30 ms, for which a process may not run on a loaded machine.
	wantBuffer = 4 << 20
	// pingTimeout is the time limit for an echo reply of the loopback, which takes microseconds.
	pingTimeout = 200 * time.Millisecond
)

// hostProbes run in this process, as the calling user.
func hostProbes(ctx context.Context) []probe {
	return []probe{
		one("ping-socket", probePing),
		one("low-ports", probeLowPorts),
		one("icmp-errors", probeICMPErrors),
		{[]string{"udp-segment", "udp-gro"}, func() map[string]finding {
			b := probeBatch()
			return map[string]finding{"udp-segment": b.send, "udp-gro": b.receive}
		}},
		one("open-files", probeOpenFiles),
		one("socket-buffers", probeBuffers),
		one("runtime-dir", func() finding { return probeRuntimeDir(os.Getenv("XDG_RUNTIME_DIR")) }),
		one("peer-pidfd", probePeerPIDFD),
		one("seccomp", func() finding { return probeSeccomp(ctx) }),
		one("splice", probeSplice),
	}
}

// probePing opens ping sockets of both families and pings the IPv4 loopback.
func probePing() finding {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		f := failed("ping socket", err)
		f.Detail += fmt.Sprintf(" (net.ipv4.ping_group_range is %q)", sysctl("net/ipv4/ping_group_range"))
		return f
	}
	defer unix.Close(fd)
	echo := []byte{8, 0, 0, 0, 0, 0, 0, 1} // type echo request, sequence 1; the kernel fills in id and checksum
	if err := unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return failed("send an echo request", err)
	}
	answer := "an echo request was answered"
	if readable(fd, pingTimeout) != nil { // net.ipv4.icmp_echo_ignore_all, say, which concerns the host's own addresses only
		answer = "ping sockets are allowed (the loopback does not answer)"
	}
	fd6, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return okf("%s, IPv4 only: %s", answer, errText(err))
	}
	unix.Close(fd6)
	return okf("%s", answer)
}

// probeLowPorts binds port 1 of the loopback, which programs hardly ever use. If one does, the permission exists too.
func probeLowPorts() finding {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 1})
	if err != nil && err != unix.EADDRINUSE {
		f := failed("bind to a low port", err)
		f.Detail += fmt.Sprintf(" (ports from %s can be published)", sysctl("net/ipv4/ip_unprivileged_port_start"))
		return f
	}
	return okf("all ports can be published")
}

// loopbackUDP opens an IPv4 socket on an ephemeral port of the loopback.
func loopbackUDP() (fd int, addr *unix.SockaddrInet4, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, nil, err
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err == nil {
		var sa unix.Sockaddr
		if sa, err = unix.Getsockname(fd); err == nil {
			return fd, sa.(*unix.SockaddrInet4), nil
		}
	}
	unix.Close(fd)
	return -1, nil, err
}

// probeICMPErrors sends a datagram to a port that was just closed and reads the ICMP port unreachable from the error queue.
func probeICMPErrors() finding {
	closed, addr, err := loopbackUDP()
	if err != nil {
		return failed("socket", err)
	}
	fd, _, err := loopbackUDP()
	unix.Close(closed)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1); err != nil {
		return failed("IP_RECVERR", err)
	}
	if err := unix.Sendto(fd, []byte("x"), 0, addr); err != nil {
		return failed("send", err)
	}
	if err := readable(fd, answerTimeout); err != nil { // POLLERR counts
		return failed("port unreachable", err)
	}
	oob := make([]byte, 256)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 16), oob, unix.MSG_ERRQUEUE)
	if err != nil {
		return failed("error queue", err)
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return failed("error queue", err)
	}
	for _, c := range cmsgs {
		// struct sock_extended_err: errno, origin, type, code
		if c.Header.Level == unix.SOL_IP && c.Header.Type == unix.IP_RECVERR && len(c.Data) >= 7 &&
			c.Data[4] == unix.SO_EE_ORIGIN_ICMP && c.Data[5] == 3 {
			return okf("a port unreachable came with its ICMP code")
		}
	}
	return finding{Status: Missing, Detail: "the error queue does not contain the ICMP code"}
}

type batchFindings struct{ send, receive finding }

// probeBatch sends a GSO batch of three datagrams in one system call and receives it in one.
func probeBatch() (b batchFindings) {
	const segment, total = 100, 300 // bytes
	fail := func(f finding) batchFindings { return batchFindings{f, f} }
	to, addr, err := loopbackUDP()
	if err != nil {
		return fail(failed("socket", err))
	}
	defer unix.Close(to)
	from, _, err := loopbackUDP()
	if err != nil {
		return fail(failed("socket", err))
	}
	defer unix.Close(from)
	groErr := unix.SetsockoptInt(to, unix.SOL_UDP, unix.UDP_GRO, 1)
	if err := unix.SetsockoptInt(from, unix.SOL_UDP, unix.UDP_SEGMENT, segment); err != nil {
		return batchFindings{failed("UDP_SEGMENT", err), finding{Status: Untried, Detail: "the test needs udp-segment"}}
	}
	if err := unix.Sendto(from, make([]byte, total), 0, addr); err != nil {
		return fail(failed("send a batch", err))
	}
	b.send = okf("a batch of datagrams was sent")
	if groErr != nil {
		b.receive = failed("UDP_GRO", groErr)
		return b
	}
	if err := readable(to, answerTimeout); err != nil {
		return fail(failed("a batch did not arrive", err))
	}
	n, _, _, _, err := unix.Recvmsg(to, make([]byte, 2*total), make([]byte, 64), 0)
	switch {
	case err != nil:
		b.receive = failed("receive a batch", err)
	case n != total:
		b.receive = finding{Status: Missing, Detail: fmt.Sprintf("of a batch of %d bytes %d were received", total, n)}
	default:
		b.receive = okf("a batch of datagrams was received")
	}
	return b
}

func probeOpenFiles() finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return failed("RLIMIT_NOFILE", err)
	}
	if l.Max < wantFiles {
		return finding{Status: Denied, Detail: fmt.Sprintf("the hard limit is %d, %d are wanted", l.Max, wantFiles)}
	}
	return okf("the hard limit is %d", l.Max)
}

// probeBuffers sets the size of socket buffers and reads it back. The kernel doubles the value that was set (socket(7)).
func probeBuffers() finding {
	fd, _, err := loopbackUDP()
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	low := -1
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, wantBuffer); err != nil {
			return failed("socket buffer", err)
		}
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o)
		if err != nil {
			return failed("socket buffer", err)
		}
		if n /= 2; low < 0 || n < low {
			low = n
		}
	}
	if low < wantBuffer {
		return finding{Status: Denied, Detail: fmt.Sprintf("the limit is %d KiB, %d KiB are wanted", low>>10, wantBuffer>>10)}
	}
	return okf("%d KiB", low>>10)
}

// probeRuntimeDir creates a directory in dir and connects to a unix socket in it.
func probeRuntimeDir(dir string) finding {
	if dir == "" {
		f := finding{Status: Missing, Detail: "XDG_RUNTIME_DIR is not set"}
		if d := fmt.Sprintf("/run/user/%d", os.Geteuid()); unix.Access(d, unix.W_OK) == nil {
			f.Fix = "export XDG_RUNTIME_DIR=" + d
		}
		return f
	}
	d, err := os.MkdirTemp(dir, "rootless-net-doctor-")
	if err != nil {
		return failed("make a directory in "+dir, err)
	}
	defer os.RemoveAll(d)
	l, err := net.Listen("unix", filepath.Join(d, "api.sock"))
	if err != nil {
		return failed("make a socket in "+dir, err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		return failed("connect to a socket in "+dir, err)
	}
	c.Close()
	return okf("%s", dir)
}

func probePeerPIDFD() finding {
	const soPeerPIDFD = 77 // SO_PEERPIDFD, include/uapi/asm-generic/socket.h
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed("socketpair", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	fd, err := unix.GetsockoptInt(p[0], unix.SOL_SOCKET, soPeerPIDFD)
	if err != nil {
		return failed("SO_PEERPIDFD", err)
	}
	unix.Close(fd)
	return okf("SO_PEERPIDFD works")
}

// probeSeccomp runs a child that loads a filter, because a filter cannot be removed again.
func probeSeccomp(ctx context.Context) finding {
	found, err := runChild(ctx, roleSeccomp, 0)
	if err != nil {
		return failed("start a child", err)
	}
	return found["seccomp"]
}

// probeSplice moves bytes from one TCP socket through a pipe to another.
func probeSplice() finding {
	const text = "through the kernel"
	in, err := tcpPair()
	if err != nil {
		return failed("TCP on the loopback", err)
	}
	defer in.close()
	out, err := tcpPair()
	if err != nil {
		return failed("TCP on the loopback", err)
	}
	defer out.close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return failed("pipe", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if _, err := unix.Write(in.a, []byte(text)); err != nil {
		return failed("write", err)
	}
	if err := readable(in.b, answerTimeout); err != nil {
		return failed("read", err)
	}
	n, err := unix.Splice(in.b, nil, p[1], nil, len(text), unix.SPLICE_F_NONBLOCK)
	if err == nil {
		_, err = unix.Splice(p[0], nil, out.a, nil, int(n), unix.SPLICE_F_NONBLOCK)
	}
	if err != nil {
		return failed("splice", err)
	}
	if err := readable(out.b, answerTimeout); err != nil {
		return failed("read", err)
	}
	buf := make([]byte, 64)
	m, err := unix.Read(out.b, buf)
	if err != nil || string(buf[:m]) != text {
		return finding{Status: Missing, Detail: "the bytes did not arrive"}
	}
	return okf("data can be spliced from socket to socket")
}

// pair holds the two ends of a TCP connection.
type pair struct{ a, b int }

func (p pair) close() { unix.Close(p.a); unix.Close(p.b) }

func tcpPair() (p pair, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return p, err
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return p, err
	}
	if err := unix.Listen(l, 1); err != nil {
		return p, err
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		return p, err
	}
	if p.a, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return p, err
	}
	if err = unix.Connect(p.a, addr); err == nil { // the kernel completes the handshake before accept
		p.b, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	}
	if err != nil {
		unix.Close(p.a)
	}
	return p, err
}
