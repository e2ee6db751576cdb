//go:build amd64 || arm64

package userns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const filterEnv = "USERNS_TEST_FILTER"

// A filter cannot be removed, so a child process loads it.
func init() {
	if os.Getenv(filterEnv) == "" {
		return
	}
	if err := beFiltered(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func beFiltered() error {
	if err := noNewPrivs(); err != nil {
		return err
	}
	if err := Filter(); err != nil {
		return err
	}
	_, _, clone := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	fd := func(_ int, err error) error { return err }
	for what, err := range map[string]error{
		"execve":        exec.Command("/bin/true").Run(),
		"clone":         clone,
		"unshare":       unix.Unshare(unix.CLONE_NEWUSER),
		"setns":         unix.Setns(0, 0),
		"mount":         unix.Mount("none", "/", "tmpfs", 0, ""),
		"ptrace":        unix.PtraceAttach(os.Getppid()),
		"pidfd_getfd":   fd(unix.PidfdGetfd(0, 0, 0)),
		"userfaultfd":   func() error { _, _, e := syscall.RawSyscall(unix.SYS_USERFAULTFD, 0, 0, 0); return e }(),
		"io_uring":      func() error { _, _, e := syscall.RawSyscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); return e }(),
		"openat of any": fd(unix.OpenByHandleAt(0, unix.FileHandle{}, 0)),
	} {
		if !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: %w, want EPERM", what, err)
		}
	}
	// What the supervisor does: threads, also new ones, with sockets and files.
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range cap(errs) {
		wg.Go(func() {
			runtime.LockOSThread() // a thread of its own, which ends with the goroutine
			errs <- exchange()
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	_, err := os.ReadFile("/proc/self/status")
	return err
}

func exchange() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	_, err = io.WriteString(s, "x")
	s.Close()
	if err == nil {
		_, err = io.ReadAll(c)
	}
	return err
}

// TestFilter: the refused system calls fail with EPERM, and the others work on existing and on new threads.
func TestFilter(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), filterEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
