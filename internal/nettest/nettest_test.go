package nettest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"rootlessnet/tap"
)

func TestFakeDeviceCarriesFramesBothWays(t *testing.T) {
	CheckLeaks(t)
	d := NewFakeDevice(tap.Info{Kind: tap.KindTAP, MTU: 1500})
	defer d.Close()
	h := tap.Header{GSOType: tap.GSOTCPv4, GSOSize: 1448}
	d.Inject(tap.Frame{Header: h, Bufs: [][]byte{[]byte("to"), nil, []byte("gether")}})
	d.InjectBytes(make([]byte, 9), []byte("second"))
	frames := []tap.Frame{{Bufs: [][]byte{make([]byte, 3), make([]byte, 5)}}, {Bufs: [][]byte{make([]byte, 8)}}}
	n, err := d.ReadFrames(frames)
	if n != 2 || err != nil {
		t.Fatalf("ReadFrames: %d, %v", n, err)
	}
	if got := bytes.Join(frames[0].Bufs, nil); string(got) != "together" || frames[0].Len != 8 || frames[0].Header != h {
		t.Errorf("first frame: %q %d %+v", got, frames[0].Len, frames[0].Header)
	}
	if string(frames[1].Bufs[0][:frames[1].Len]) != "second" {
		t.Errorf("a frame that does not fit must be dropped, the next one read; got %q", frames[1].Bufs[0])
	}
	if n, err := d.WriteFrames([]tap.Frame{{Header: h, Bufs: [][]byte{[]byte("an"), []byte("swer")}}}); n != 1 || err != nil {
		t.Fatalf("WriteFrames: %d, %v", n, err)
	}
	if f := d.MustNext(t, time.Second); string(f.Bufs[0]) != "answer" || f.Header != h {
		t.Errorf("written: %q %+v", f.Bufs[0], f.Header)
	}
	d.SetFull(true)
	if n, _ := d.WriteFrames([]tap.Frame{{}}); n != 0 {
		t.Error("a full queue took a frame")
	}
	want := tap.Stats{RxFrames: 2, RxBytes: 14, RxDropped: 1, TxFrames: 1, TxBytes: 6, TxDropped: 1}
	if s := d.Stats(); s != want {
		t.Errorf("stats %+v, want %+v", s, want)
	}
}

func TestFakeDeviceCloseUnblocks(t *testing.T) {
	CheckLeaks(t)
	d := NewFakeDevice(tap.Info{})
	done := make(chan error)
	go func() {
		_, err := d.ReadFrames([]tap.Frame{{}})
		done <- err
	}()
	time.AfterFunc(20*time.Millisecond, func() { d.Close() })
	if err := <-done; !errors.Is(err, tap.ErrClosed) {
		t.Errorf("ReadFrames: %v", err)
	}
	if _, err := d.WriteFrames(nil); !errors.Is(err, tap.ErrClosed) {
		t.Errorf("WriteFrames: %v", err)
	}
	start := time.Now()
	if _, ok := d.Next(time.Minute); ok || time.Since(start) > time.Second {
		t.Error("Next waits on a closed device")
	}
}

// failures records what a test would have reported.
type failures struct {
	testing.TB
	output   string
	cleanups []func()
}

func (f *failures) Helper()                   {}
func (f *failures) Failed() bool              { return false }
func (f *failures) Cleanup(fn func())         { f.cleanups = append(f.cleanups, fn) }
func (f *failures) Errorf(s string, a ...any) { f.output += fmt.Sprintf(s, a...) }

func TestCheckLeaksFindsGoroutinesAndFiles(t *testing.T) {
	f := &failures{TB: t}
	checkLeaks(f, 50*time.Millisecond)
	stop := make(chan struct{})
	go func() { <-stop }()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.cleanups[0]()
	close(stop)
	file.Close()
	if !strings.Contains(f.output, "TestCheckLeaksFindsGoroutinesAndFiles") || !strings.Contains(f.output, os.DevNull) {
		t.Errorf("not found: %q", f.output)
	}
}
