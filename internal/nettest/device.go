package nettest

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"rootlessnet/internal/spin"
	"rootlessnet/tap"
)

// FakeDevice is a tap.Device in memory: the test is the guest. What the guest sends is given with Inject, what it
// receives is taken with Next or Written. Both queues are unbounded. All methods may be called from any goroutine.
type FakeDevice struct {
	info tap.Info

	mu      sync.Mutex
	changed sync.Cond   // toUs, toGuest or closed changed, or time is up
	toUs    []tap.Frame // guarded by mu, as are all below
	toGuest []tap.Frame
	stats   tap.Stats
	full    bool
	closed  bool
}

var (
	_ tap.Device = (*FakeDevice)(nil)
	_ tap.Poller = (*FakeDevice)(nil)
)

// NewFakeDevice returns an open device with the properties info.
func NewFakeDevice(info tap.Info) *FakeDevice {
	d := &FakeDevice{info: info}
	d.changed.L = &d.mu
	return d
}

// Inject queues copies of frames as if the guest had sent them.
func (d *FakeDevice) Inject(frames ...tap.Frame) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range frames {
		d.toUs = append(d.toUs, flatten(&frames[i]))
	}
	d.changed.Broadcast()
}

// InjectBytes queues frames with a zero virtio header. Like those of Inject, they are ready at once.
func (d *FakeDevice) InjectBytes(frames ...[]byte) {
	all := make([]tap.Frame, len(frames))
	for i, b := range frames {
		all[i].Bufs = [][]byte{b}
	}
	d.Inject(all...)
}

// SetFull makes the guest's queue refuse (true) or take (false) what is written.
func (d *FakeDevice) SetFull(full bool) {
	d.mu.Lock()
	d.full = full
	d.mu.Unlock()
}

// Next takes the oldest frame written to the guest, in one piece; ok is false when none came in time or the device was
// closed and is empty.
func (d *FakeDevice) Next(timeout time.Duration) (f tap.Frame, ok bool) {
	end := time.Now().Add(timeout)
	alarm := time.AfterFunc(timeout, func() {
		d.mu.Lock() // otherwise the broadcast may come between reading the clock and Wait
		d.changed.Broadcast()
		d.mu.Unlock()
	})
	defer alarm.Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.toGuest) == 0 {
		if d.closed || !time.Now().Before(end) {
			return tap.Frame{}, false
		}
		d.changed.Wait()
	}
	f = d.toGuest[0]
	d.toGuest = d.toGuest[1:]
	return f, true
}

// MustNext is Next, and fails the test when nothing came.
func (d *FakeDevice) MustNext(t testing.TB, timeout time.Duration) tap.Frame {
	t.Helper()
	f, ok := d.Next(timeout)
	if !ok {
		t.Fatalf("no frame reached the guest within %v", timeout)
	}
	return f
}

// Written takes all frames written to the guest so far.
func (d *FakeDevice) Written() []tap.Frame {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.toGuest
	d.toGuest = nil
	return f
}

// ReadFrames implements tap.Device.
func (d *FakeDevice) ReadFrames(frames []tap.Frame) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n == 0 && len(frames) > 0 {
		for len(d.toUs) == 0 && !d.closed {
			d.changed.Wait()
		}
		if d.closed {
			return 0, tap.ErrClosed
		}
		n = d.take(frames)
	}
	return n, nil
}

// PollFrames implements tap.Poller.
func (d *FakeDevice) PollFrames(frames []tap.Frame) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, tap.ErrClosed
	}
	return d.take(frames), nil
}

// Serve implements tap.Poller.
func (d *FakeDevice) Serve(handler func() spin.Result) error {
	for {
		d.mu.Lock()
		for len(d.toUs) == 0 && !d.closed {
			d.changed.Wait()
		}
		d.mu.Unlock()
		if handler() == spin.Done {
			return nil
		}
	}
}

// take fills frames with what is queued. mu is held.
func (d *FakeDevice) take(frames []tap.Frame) (n int) {
	for n < len(frames) && len(d.toUs) > 0 {
		if d.scatter(&frames[n], &d.toUs[0]) {
			n++
		}
		d.toUs = d.toUs[1:]
	}
	return n
}

// scatter fills the reader's frame, or counts a drop when it is too small.
func (d *FakeDevice) scatter(to, from *tap.Frame) bool {
	room := 0
	for _, b := range to.Bufs {
		room += len(b)
	}
	rest := from.Bufs[0]
	if len(rest) > room {
		d.stats.RxDropped++
		return false
	}
	to.Header, to.Len = from.Header, len(rest)
	d.stats.RxFrames++
	d.stats.RxBytes += uint64(len(rest))
	for _, b := range to.Bufs {
		rest = rest[copy(b, rest):]
	}
	return true
}

// WriteFrames implements tap.Device. It copies.
func (d *FakeDevice) WriteFrames(frames []tap.Frame) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, tap.ErrClosed
	}
	for i := range frames {
		if d.full {
			d.stats.TxDropped++
			continue
		}
		f := flatten(&frames[i])
		d.stats.TxFrames++
		d.stats.TxBytes += uint64(f.Len)
		d.toGuest = append(d.toGuest, f)
		n++
	}
	d.changed.Broadcast()
	return n, nil
}

// Info implements tap.Device.
func (d *FakeDevice) Info() tap.Info { return d.info }

// Stats implements tap.Device.
func (d *FakeDevice) Stats() tap.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Close implements tap.Device.
func (d *FakeDevice) Close() error {
	d.mu.Lock()
	d.closed = true
	d.changed.Broadcast()
	d.mu.Unlock()
	return nil
}

func flatten(f *tap.Frame) tap.Frame {
	b := bytes.Join(f.Bufs, nil)
	return tap.Frame{Header: f.Header, Bufs: [][]byte{b}, Len: len(b)}
}
