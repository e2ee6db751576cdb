package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/skip"
	"rootlessnet/userns"
)

// TestMain is also the main function of the probe, a program that tests run inside a namespace. The environment variable PROBE
// holds its command: "tcp ADDRESS" connects and prints the result; "dns SERVER NAME" prints the addresses of a name; "peer
// ADDRESS" prints what the server sends, which is the client's address as the server sees it; "serve ADDRESS" prints the
// addresses of a TCP and then of a UDP client.
func TestMain(m *testing.M) {
	if words := strings.Fields(os.Getenv("PROBE")); len(words) > 0 {
		fmt.Print(probe(words))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// probePatience is how long the probe waits for an answer before it reports silence. It is less than any timeout of the kernel.
const probePatience = 1500 * time.Millisecond

func probe(words []string) string {
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	switch words[0] {
	case "serve":
		return serveOnce(words[1])
	case "peer":
		c, err := net.DialTimeout("tcp", words[1], probePatience)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		text, err := io.ReadAll(c)
		return fmt.Sprint(string(text), err)
	case "dns":
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, words[1]+":53")
		}}
		addrs, err := r.LookupHost(ctx, words[2])
		slices.Sort(addrs)
		return fmt.Sprint(addrs, err)
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", words[1])
	var errno syscall.Errno
	switch {
	case err == nil:
		c.Close()
		return "open"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return "silence"
}

// serveOnce accepts one TCP connection, receives one datagram, and returns the addresses of both clients.
func serveOnce(addr string) string {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err.Error()
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err.Error()
	}
	defer u.Close()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(2 * probePatience))
	c, err := l.Accept()
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	fmt.Fprint(c, "tcp")
	_ = u.SetDeadline(time.Now().Add(2 * probePatience))
	_, from, err := u.ReadFrom(make([]byte, 10))
	if err != nil {
		return err.Error()
	}
	_, err = u.WriteTo([]byte("udp"), from)
	tcpHost, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	udpHost, _, _ := net.SplitHostPort(from.String())
	return fmt.Sprint(tcpHost, " ", udpHost, " ", err)
}

// holder starts a process in a user and a network namespace of its own; as root, only in a network namespace of its own.
func holder(t *testing.T) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		skip.Missing(t, "no namespaces here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// inside runs the probe in the namespaces of pid.
func inside(t *testing.T, pid int, words string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	code, err := userns.ExecIn(t.Context(), pid, userns.Command{Argv: []string{self}, Env: append(os.Environ(), "PROBE="+words), Stdout: w, Stderr: w})
	w.Close()
	out, rerr := io.ReadAll(r)
	if err != nil || rerr != nil || code != 0 {
		t.Fatalf("%s: exit %d: %v %v: %s", words, code, err, rerr, out)
	}
	return string(out)
}

// local is a server on the host's loopback.
func local(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}
