package systemd_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"rootlessnet/internal/systemd"
)

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@rootlessnet-test-" + strconv.Itoa(os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		if err := systemd.Notify("READY=1\nSTATUS=up"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		_ = l.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := l.Read(buf)
		if err != nil || string(buf[:n]) != "READY=1\nSTATUS=up" {
			t.Errorf("%s: got %q, %v", name, buf[:n], err)
		}
	}
}

func TestNotifyWithoutServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := systemd.Notify("READY=1"); err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if err := systemd.Notify("READY=1"); err == nil {
		t.Error("no error although the socket does not exist")
	}
}

func TestListenFDs(t *testing.T) {
	for _, c := range []struct {
		pid, fds string
		want     int
	}{
		{strconv.Itoa(os.Getpid()), "2", 2}, {"1", "2", 0}, {"", "2", 0}, {strconv.Itoa(os.Getpid()), "many", 0}, {strconv.Itoa(os.Getpid()), "-1", 0},
	} {
		t.Setenv("LISTEN_PID", c.pid)
		t.Setenv("LISTEN_FDS", c.fds)
		if n := systemd.ListenFDs(); n != c.want {
			t.Errorf("LISTEN_PID=%s LISTEN_FDS=%s: %d, want %d", c.pid, c.fds, n, c.want)
		}
	}
}
