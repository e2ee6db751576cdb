package watch_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/watch"
)

// wait checks whether w ends within the given time.
func wait(t *testing.T, w *watch.Watch, want bool, within time.Duration) {
	t.Helper()
	select {
	case <-w.C():
		if !want {
			t.Fatal("the watch ended too early")
		}
	case <-time.After(within):
		if want {
			t.Fatalf("the watch did not end within %v", within)
		}
	}
}

func TestClosedPipe(t *testing.T) {
	nettest.CheckLeaks(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	watched, err := watch.File(r)
	if err != nil {
		t.Fatal(err)
	}
	defer watched.Close()
	wait(t, watched, false, 50*time.Millisecond)
	w.Close()
	wait(t, watched, true, time.Second)
}

func TestCloseBeforeEvent(t *testing.T) {
	nettest.CheckLeaks(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	watched, err := watch.File(r)
	if err != nil {
		t.Fatal(err)
	}
	watched.Close()
	watched.Close()
	wait(t, watched, false, 10*time.Millisecond)
}

func TestRegularFileHasNoEvents(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := watch.File(f); !errors.Is(err, syscall.EPERM) {
		t.Fatalf("error %v, want EPERM", err)
	}
}

func TestEndOfProcess(t *testing.T) {
	nettest.CheckLeaks(t)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	watched, err := watch.File(pidfd)
	if err != nil {
		t.Fatal(err)
	}
	defer watched.Close()
	wait(t, watched, false, 50*time.Millisecond)
	in.Close()
	wait(t, watched, true, 5*time.Second)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestRemovedPath(t *testing.T) {
	nettest.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := watch.Path(path, func() bool { _, err := os.Stat(path); return err == nil })
	defer w.Close()
	wait(t, w, false, 50*time.Millisecond)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wait(t, w, true, watch.PathInterval/2) // less than the interval, so it was the inotify event
}
