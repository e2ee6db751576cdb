package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"rootlessnet/internal/nettest"
	"rootlessnet/tap"
)

// disk is a file whose writes can be delayed or made to fail.
type disk struct {
	mu     sync.Mutex
	b      bytes.Buffer
	err    error
	closed int
	block  chan struct{} // when not nil, writes after the first wait until it is closed
	wrote  bool
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wrote && d.block != nil {
		d.mu.Unlock()
		<-d.block
		d.mu.Lock()
	}
	if d.wrote && d.err != nil {
		return 0, d.err
	}
	d.wrote = true
	return d.b.Write(p)
}

func (d *disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed++
	return nil
}

func (d *disk) content() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.b.Bytes())
}

// packets parses a pcap file and returns the frames in it.
func packets(t *testing.T, b []byte) (frames []string) {
	t.Helper()
	e := binary.NativeEndian
	if len(b) < 24 || e.Uint32(b) != 0xa1b23c4d || e.Uint32(b[20:]) != 1 {
		t.Fatalf("no pcap header: % x", b[:min(24, len(b))])
	}
	for b = b[24:]; len(b) > 0; {
		at := time.Unix(int64(e.Uint32(b)), int64(e.Uint32(b[4:])))
		n := e.Uint32(b[8:])
		if since := time.Since(at); since < 0 || since > time.Minute || e.Uint32(b[12:]) != n {
			t.Fatalf("record of %v ago, %d of %d bytes", since, n, e.Uint32(b[12:]))
		}
		frames = append(frames, string(b[16:16+n]))
		b = b[16+n:]
	}
	return frames
}

func capture(t *testing.T, w io.WriteCloser) (*nettest.FakeDevice, tap.Device, *bytes.Buffer) {
	t.Helper()
	fake, log := nettest.NewFakeDevice(tap.Info{Kind: tap.KindTAP}), new(bytes.Buffer)
	c, err := tap.NewCapture(fake, w, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return fake, c, log
}

func TestCaptureRecordsBothDirections(t *testing.T) {
	nettest.CheckLeaks(t)
	d := &disk{}
	fake, c, _ := capture(t, d)
	large := strings.Repeat("x", 65549)
	fake.InjectBytes([]byte("from the guest"))
	in := []tap.Frame{{Bufs: [][]byte{make([]byte, 5), make([]byte, 100)}}}
	if _, err := c.ReadFrames(in); err != nil {
		t.Fatal(err)
	}
	if n, err := c.WriteFrames([]tap.Frame{{Bufs: [][]byte{[]byte("to "), []byte("it")}}, {Bufs: [][]byte{[]byte(large)}}}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if f := fake.MustNext(t, time.Second); string(f.Bufs[0]) != "to it" {
		t.Errorf("the guest got %q", f.Bufs[0])
	}
	for end := time.Now().Add(5 * time.Second); len(d.content()) < len(large); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is written before the capture is closed")
		}
	}
	c.WriteFrames([]tap.Frame{{Bufs: [][]byte{[]byte("last")}}})
	c.Close()
	c.Close()
	want := []string{"from the guest", "to it", large, "last"}
	got := packets(t, d.content())
	if len(got) != len(want) {
		t.Fatalf("%d frames, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("frame %d: %.20q, want %.20q", i, got[i], want[i])
		}
	}
	if d.closed != 1 {
		t.Errorf("the file was closed %d times", d.closed)
	}
	if _, err := c.ReadFrames(in); !errors.Is(err, tap.ErrClosed) {
		t.Errorf("the device is still open: %v", err)
	}
}

func TestCaptureOnSlowDiskDelaysNoTraffic(t *testing.T) {
	nettest.CheckLeaks(t)
	d := &disk{block: make(chan struct{})}
	fake, c, log := capture(t, d)
	const frames = 600 // of 60000 bytes: more than twice captureQueue
	b := make([]byte, 60000)
	start := time.Now()
	for range frames {
		if n, err := c.WriteFrames([]tap.Frame{{Bufs: [][]byte{b}}}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("traffic took %v", took)
	}
	if n := len(fake.Written()); n != frames {
		t.Errorf("%d frames reached the guest", n)
	}
	close(d.block)
	c.Close()
	n := len(packets(t, d.content()))
	if n == 0 || n >= frames {
		t.Errorf("%d of %d frames captured", n, frames)
	}
	if s := log.String(); strings.Count(s, "too slow, ") != 1 || !strings.Contains(s, "incomplete") {
		t.Errorf("log: %s", s)
	}
}

func TestFailedCaptureDoesNotStopTraffic(t *testing.T) {
	nettest.CheckLeaks(t)
	d := &disk{err: errors.New("no space left")}
	fake, c, log := capture(t, d)
	b := make([]byte, 60000)
	for range 50 {
		if n, err := c.WriteFrames([]tap.Frame{{Bufs: [][]byte{b}}}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	c.Close()
	if n := len(fake.Written()); n != 50 {
		t.Errorf("%d frames reached the guest", n)
	}
	if s := log.String(); strings.Count(s, "no space left") != 1 {
		t.Errorf("log: %s", s)
	}
	if d.closed != 1 {
		t.Errorf("the file was closed %d times", d.closed)
	}
}

func TestCaptureFailsToStart(t *testing.T) {
	d := &disk{err: errors.New("read-only"), wrote: true}
	if _, err := tap.NewCapture(nettest.NewFakeDevice(tap.Info{}), d, nil); !errors.Is(err, d.err) || d.closed != 1 {
		t.Errorf("%v, closed %d times", err, d.closed)
	}
}

func TestCaptureCloseDoesNotHangOnAPipe(t *testing.T) {
	nettest.CheckLeaks(t)
	r, w := io.Pipe()
	go io.ReadFull(r, make([]byte, 24))
	_, c, _ := capture(t, w)
	c.WriteFrames([]tap.Frame{{Bufs: [][]byte{[]byte("unread")}}})
	start := time.Now()
	c.Close()
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("Close took %v", took)
	}
}
