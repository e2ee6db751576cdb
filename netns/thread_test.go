package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
)

// TestThread: functions run in the other namespace, one after the other; sockets belong to it; and after Close there are none.
func TestThread(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	here := inode(t, "/proc/thread-self/ns/net")
	// Another namespace, which a file keeps.
	made := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, in the other namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		made <- f
	}()
	ns := <-made
	defer ns.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
	there := inode(t, path)
	if here == there {
		t.Fatal("one namespace")
	}
	thread, err := Enter(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := thread.Do(func() error {
		if got := inode(t, "/proc/thread-self/ns/net"); got != there {
			t.Errorf("in namespace %d, want %d", got, there)
		}
		return unix.ENOANO
	}); !errors.Is(err, unix.ENOANO) {
		t.Errorf("got %v", err)
	}
	for addr, kind := range map[string]int{"127.0.0.1": unix.SOCK_STREAM, "::1": unix.SOCK_DGRAM} {
		fd, err := thread.Socket(netip.MustParseAddr(addr), kind)
		if err != nil {
			t.Fatal(err)
		}
		owner, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
		if err != nil {
			t.Fatal(err)
		}
		if got := inode(t, fmt.Sprintf("/proc/self/fd/%d", owner)); got != there {
			t.Errorf("a socket of namespace %d, want %d", got, there)
		}
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || got != kind {
			t.Errorf("kind %d, %v", got, err)
		}
		closeFDs([]int{fd, owner})
	}
	thread.Close()
	if err := thread.Do(func() error { return nil }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestEnterFails: a file that is no network namespace, or none at all.
func TestEnterFails(t *testing.T) {
	nettest.CheckLeaks(t)
	for _, path := range []string{"/nonexistent", "/dev/null"} {
		var e *Error
		if _, err := Enter(path); !errors.As(err, &e) {
			t.Errorf("%s: %v", path, err)
		}
		if err := RunAt(path, func() error { t.Error("it runs"); return nil }); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

// TestListenLoopback: sockets for what the namespace sends to itself; a port that is taken is EADDRINUSE.
func TestListenLoopback(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setUp(t, nil)
	for _, proto := range []string{"tcp", "udp"} {
		f, err := ListenLoopback(proto, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := ListenLoopback(proto, 1); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s port 1 twice: %v", proto, err)
		}
		fd := int(f.Fd())
		device, _ := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
		listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if device != "lo" || listens != 0 != (proto == "tcp") {
			t.Errorf("%s: on %q, listening %d", proto, device, listens)
		}
		for _, to := range []string{"127.0.0.1:1", "127.9.9.9:1", "[::1]:1"} {
			c, err := net.Dial(proto, to)
			if err != nil {
				t.Errorf("%s %s: %v", proto, to, err)
				continue
			}
			c.Close()
		}
	}
}
