package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/race"
	"rootlessnet/tap"
)

// pair returns a Device on one end of a datagram socketpair, which preserves message boundaries as a TAP does, and the other end.
func pair(t testing.TB, kind tap.Kind) (tap.Device, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := tap.NewFDDevice(os.NewFile(uintptr(fds[0]), "pair"), tap.Info{Kind: kind, Name: "pair", MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); unix.Close(fds[1]) })
	return d, fds[1]
}

func TestFramesInSeveralBuffers(t *testing.T) {
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindTAPPlain, tap.KindPacket} {
		t.Run(string(kind), func(t *testing.T) {
			nettest.CheckLeaks(t)
			d, fd := pair(t, kind)
			h := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOTCPv4, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}
			var front []byte
			if kind == tap.KindTAPPlain {
				h = tap.Header{}
			} else {
				b := tap.EncodeHeader(h)
				front = b[:]
			}
			out := []tap.Frame{{Header: h, Bufs: [][]byte{[]byte("one"), nil, []byte("two")}}, {Header: h, Bufs: [][]byte{[]byte("three")}}}
			if n, err := d.WriteFrames(out); n != 2 || err != nil {
				t.Fatalf("WriteFrames: %d, %v", n, err)
			}
			for _, want := range []string{"onetwo", "three"} {
				b := make([]byte, 100)
				n, err := unix.Read(fd, b)
				if err != nil || string(b[:n]) != string(front)+want {
					t.Fatalf("read %q, %v, want %q", b[:n], err, want)
				}
			}
			for _, s := range []string{"exactly8", "much too large", "four"} {
				if _, err := unix.Write(fd, append(bytes.Clone(front), s...)); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for len(got) < 2 {
				in := make([]tap.Frame, 4)
				for i := range in {
					in[i].Bufs = [][]byte{make([]byte, 3), nil, make([]byte, 5)}
				}
				n, err := d.ReadFrames(in)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range in[:n] {
					if f.Len == 0 {
						continue // a dropped frame keeps its element in a batch
					}
					got = append(got, string(bytes.Join(f.Bufs, nil)[:f.Len]))
					if f.Header != h {
						t.Errorf("header %+v, want %+v", f.Header, h)
					}
				}
			}
			if got[0] != "exactly8" || got[1] != "four" {
				t.Errorf("read %q", got)
			}
			if s, want := d.Stats(), (tap.Stats{RxFrames: 2, RxBytes: 12, RxDropped: 1, TxFrames: 2, TxBytes: 11}); s != want {
				t.Errorf("stats %+v, want %+v", s, want)
			}
		})
	}
}

func TestReadShorterThanHeader(t *testing.T) {
	d, fd := pair(t, tap.KindTAP)
	unix.Write(fd, []byte("nine by."))
	unix.Write(fd, make([]byte, tap.HeaderLen+1))
	in := []tap.Frame{{Bufs: [][]byte{make([]byte, 64)}}}
	if n, err := d.ReadFrames(in); n != 1 || err != nil || in[0].Len != 1 {
		t.Fatalf("%d, %v, Len %d: want the frame of one byte", n, err, in[0].Len)
	}
	if s := d.Stats(); s.RxDropped != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestUnwritableFrames(t *testing.T) {
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindPacket} {
		d, _ := pair(t, kind)
		many := make([][]byte, 1024)
		for i := range many {
			many[i] = []byte{1}
		}
		frames := []tap.Frame{{}, {Bufs: [][]byte{nil}}, {Bufs: many}, {Bufs: [][]byte{{1}}}}
		for i := range frames {
			d.WriteFrames(frames[i : i+1])
		}
		if s := d.Stats(); s.TxDropped != 3 || s.TxFrames != 1 {
			t.Errorf("%s one per call: %+v", kind, s)
		}
		if n, err := d.WriteFrames(frames); n != 1 || err != nil {
			t.Errorf("%s as one batch: %d, %v", kind, n, err)
		}
	}
}

func TestFullQueueDropsWithoutWaiting(t *testing.T) {
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindPacket} {
		d, _ := pair(t, kind)
		frames := make([]tap.Frame, 100)
		for i := range frames {
			frames[i].Bufs = [][]byte{make([]byte, 60000)}
		}
		start := time.Now()
		n, err := d.WriteFrames(frames)
		if err != nil || n == 0 || n == 100 {
			t.Errorf("%s: %d, %v", kind, n, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: with a full queue the writer took %v", kind, took)
		}
		if s := d.Stats(); int(s.TxFrames) != n || int(s.TxDropped) != 100-n {
			t.Errorf("%s: wrote %d, stats %+v", kind, n, s)
		}
	}
}

func TestCloseUnblocksReaderAndWriters(t *testing.T) {
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindPacket} {
		t.Run(string(kind), func(t *testing.T) {
			nettest.CheckLeaks(t)
			d, _ := pair(t, kind)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for {
						if _, err := d.WriteFrames([]tap.Frame{{Bufs: [][]byte{{1}}}}); err != nil {
							if !errors.Is(err, tap.ErrClosed) {
								t.Errorf("writer: %v", err)
							}
							return
						}
					}
				})
			}
			wg.Go(func() {
				if _, err := d.ReadFrames([]tap.Frame{{Bufs: [][]byte{make([]byte, 9)}}}); !errors.Is(err, tap.ErrClosed) {
					t.Errorf("reader: %v", err)
				}
			})
			time.Sleep(20 * time.Millisecond)
			for range 2 {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
			wg.Wait()
			if _, err := d.ReadFrames(make([]tap.Frame, 1)); !errors.Is(err, tap.ErrClosed) {
				t.Errorf("read after close: %v", err)
			}
			d.Stats()
		})
	}
}

func TestNoAllocationPerFrame(t *testing.T) {
	if race.Enabled {
		t.Skip("NOT TESTED: allocations under the race detector")
	}
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindTAPPlain, tap.KindPacket} {
		d, fd := pair(t, kind)
		small := make([]byte, 64)
		in := []tap.Frame{{Bufs: [][]byte{make([]byte, 128)}}, {Bufs: [][]byte{make([]byte, 128)}}}
		out := []tap.Frame{{Bufs: [][]byte{small[:14], small[14:]}}}
		buf := make([]byte, 128)
		// AllocsPerRun rounds the average down, so an occasional emptying of the pool by the collector does not count.
		if n := testing.AllocsPerRun(1000, func() {
			unix.Write(fd, small)
			d.ReadFrames(in)
			d.WriteFrames(out)
			unix.Read(fd, buf)
		}); n != 0 {
			t.Errorf("%s: %v allocations per frame", kind, n)
		}
	}
}

func TestFromFDRefuses(t *testing.T) {
	nettest.CheckLeaks(t)
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindTAPPlain, tap.KindPacket, "carrier-pigeon"} {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		var e *tap.Error
		if _, err := tap.FromFD(f, tap.Info{Kind: kind}); !errors.As(err, &e) {
			t.Errorf("%s on %s: %v", kind, os.DevNull, err)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(make([]byte, tap.HeaderLen))
	f.Add([]byte{1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < tap.HeaderLen {
			return
		}
		raw := [tap.HeaderLen]byte(b)
		if got := tap.EncodeHeader(tap.DecodeHeader(raw)); got != raw {
			t.Errorf("% x became % x", raw, got)
		}
	})
}

func FuzzAuxData(f *testing.F) {
	tagged := make([]byte, 40)
	binary.NativeEndian.PutUint64(tagged, 36)
	binary.NativeEndian.PutUint32(tagged[8:], unix.SOL_PACKET)
	binary.NativeEndian.PutUint32(tagged[12:], unix.PACKET_AUXDATA)
	binary.NativeEndian.PutUint32(tagged[16:], unix.TP_STATUS_USER|unix.TP_STATUS_VLAN_VALID)
	if !tap.VLANTagged(tagged) {
		f.Error("a VLAN tag was not recognised")
	}
	f.Add(tagged)
	f.Fuzz(func(t *testing.T, b []byte) {
		if tap.VLANTagged(b) && len(b) < 36 {
			t.Errorf("a VLAN tag was recognised in % x", b)
		}
	})
}
