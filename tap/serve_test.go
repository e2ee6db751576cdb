package tap_test

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/spin"
	"rootlessnet/tap"
)

// serve starts Serve in group with a handler that counts and discards the frames. ended delivers the error Serve ended with.
func serve(d tap.Device, group *spin.Group) (frames *atomic.Int64, ended chan error) {
	d.(tap.BusyPoller).SetBusyPollGroup(group)
	p, frames, ended := d.(tap.Poller), new(atomic.Int64), make(chan error, 1)
	in := make([]tap.Frame, 4)
	for i := range in {
		in[i].Bufs = [][]byte{make([]byte, 65536), make([]byte, 128)}
	}
	var final error
	go func() {
		err := p.Serve(func() spin.Result {
			n, err := p.PollFrames(in)
			if frames.Add(int64(n)); err != nil {
				final = err
				return spin.Done
			}
			if n == 0 {
				return spin.Idle
			}
			return spin.Progress
		})
		if err == nil {
			err = final
		}
		ended <- err
	}()
	return frames, ended
}

func awaitEnd(t *testing.T, ended chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if !errors.Is(err, tap.ErrClosed) {
			t.Errorf("Serve: %v, want ErrClosed", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Serve does not return")
	}
}

func TestServe(t *testing.T) {
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindTAPPlain, tap.KindPacket} {
		t.Run(string(kind), func(t *testing.T) {
			d, fd := pair(t, kind)
			frames, ended := serve(d, nil)
			for i := range int64(100) {
				if _, err := unix.Write(fd, make([]byte, 64)); err != nil {
					t.Fatal(err)
				}
				for end := time.Now().Add(5 * time.Second); frames.Load() <= i; time.Sleep(10 * time.Microsecond) {
					if time.Now().After(end) {
						t.Fatal("no frame")
					}
				}
			}
			d.Close()
			awaitEnd(t, ended)
			_, ended = serve(d, nil)
			awaitEnd(t, ended)
		})
	}
}

// TestDeletionSeenByBusyPollEndsServe: a packet socket reports once that its interface went down, and another goroutine of the
// group may receive that report while it busy-polls.
func TestDeletionSeenByBusyPollEndsServe(t *testing.T) {
	if !enter(t) {
		return
	}
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindPacket} {
		l := newLink(t, kind)
		group := spin.NewGroup()
		_, ended := serve(l.Device, group)
		stop := keepBusyPolling(t, group)
		time.Sleep(20 * time.Millisecond) // until it does
		if err := netlink.LinkDel(l.guest); err != nil {
			t.Fatal(err)
		}
		awaitEnd(t, ended)
		stop()
		group.Close()
	}
}

// keepBusyPolling starts a goroutine that busy-polls group all the time: each run of its handler makes the descriptor ready again.
func keepBusyPolling(t *testing.T, group *spin.Group) (stop func()) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, buf, done := os.NewFile(uintptr(p[0]), "busy"), make([]byte, 1), make(chan struct{})
	m, err := group.NewMember(f, func() spin.Result {
		if n, _ := unix.Read(p[0], buf); n <= 0 {
			return spin.Idle
		}
		unix.Write(p[1], buf)
		return spin.Progress
	})
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(p[1], buf)
	go func() {
		defer close(done)
		_ = m.Run()
	}()
	return func() {
		m.Leave()
		f.Close()
		<-done
		unix.Close(p[1])
	}
}
