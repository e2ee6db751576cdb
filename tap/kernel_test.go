package tap_test

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/tap"
)

func TestDatagramsCrossBothWays(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		nettest.CheckLeaks(t)
		l := newLink(t, kind)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := echo(l, 8); !errors.Is(err, tap.ErrClosed) {
				t.Errorf("echo: %v", err)
			}
		})
		fd := guestSocket(t)
		for _, size := range []int{0, 1, 1472, 9000, 65000} {
			if !exchange(t, fd, size) {
				t.Errorf("%d bytes did not come back", size)
			}
		}
		l.Close()
		wg.Wait()
		if s := l.Stats(); s.RxFrames < 5 || s.RxBytes < 75000 || s.TxFrames != 5 || s.RxDropped+s.TxDropped != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestVirtioHeaderFromKernel(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		l := newLink(t, kind)
		unix.Write(guestSocket(t), make([]byte, 1000))
		in := []tap.Frame{{Bufs: [][]byte{make([]byte, 2000)}}}
		for {
			if _, err := l.ReadFrames(in); err != nil {
				t.Fatal(err)
			}
			if isUDP(in[0].Bufs[0][:in[0].Len]) {
				break
			}
		}
		want := tap.Header{Flags: tap.FlagNeedsCsum, CsumStart: 34, CsumOffset: 6}
		if kind == tap.KindTAPPlain {
			want = tap.Header{}
		}
		if got := in[0].Header; got != want || in[0].Len != 1042 {
			t.Errorf("Len %d, header %+v, want %+v", in[0].Len, got, want)
		}
	})
}

func TestFrameLargerThanBuffersIsDropped(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		l := newLink(t, kind)
		fd := guestSocket(t)
		for _, size := range []int{3000, 101, 100} {
			unix.Write(fd, make([]byte, size))
		}
		for got := false; !got; {
			in := []tap.Frame{{Bufs: [][]byte{make([]byte, 42), make([]byte, 100)}}, {Bufs: [][]byte{make([]byte, 142)}}}
			n, err := l.ReadFrames(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range in[:n] {
				if f.Len > 100 && f.Len != 142 {
					t.Fatalf("a frame was truncated to %d bytes", f.Len)
				}
				got = got || f.Len == 142
			}
		}
		if s := l.Stats(); s.RxDropped != 2 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestLinkSurvivesMalformedFrames(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		l := newLink(t, kind)
		var wg sync.WaitGroup
		wg.Go(func() { echo(l, 8) })
		b := make([]byte, 1514)
		for _, h := range []tap.Header{
			{}, {Flags: 0xff, GSOType: 0xff, HdrLen: 0xffff, GSOSize: 0xffff, CsumStart: 0xffff, CsumOffset: 0xffff},
			{Flags: tap.FlagNeedsCsum, CsumStart: 1500, CsumOffset: 100}, {GSOType: tap.GSOTCPv4}, {HdrLen: 4000},
		} {
			for _, n := range []int{0, 1, 13, 14, 15, 34, 1514} {
				if _, err := l.WriteFrames([]tap.Frame{{Header: h, Bufs: [][]byte{b[:n]}}, {Header: h, Bufs: [][]byte{b[:n]}}}); err != nil {
					t.Fatalf("%d bytes, %+v: %v", n, h, err)
				}
			}
		}
		if s := l.Stats(); s.TxDropped == 0 {
			t.Errorf("the kernel refused no frame: %+v", s)
		}
		if !exchange(t, guestSocket(t), 100) {
			t.Error("the link does not work any more")
		}
		l.Close()
		wg.Wait()
	})
}

func TestLinkDownAndUp(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		l := newLink(t, kind)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := echo(l, 8); !errors.Is(err, tap.ErrClosed) {
				t.Errorf("echo: %v", err)
			}
		})
		fd := guestSocket(t)
		for range 3 {
			if !exchange(t, fd, 100) {
				t.Fatal("the link does not work")
			}
			before := l.Stats().TxDropped
			if err := netlink.LinkSetDown(l.guest); err != nil {
				t.Fatal(err)
			}
			n, err := l.WriteFrames([]tap.Frame{{Bufs: [][]byte{make([]byte, 60)}}})
			if n != 0 || err != nil || l.Stats().TxDropped != before+1 {
				t.Errorf("write while down: %d, %v, %+v", n, err, l.Stats())
			}
			l.up(t)
		}
		if !exchange(t, fd, 100) {
			t.Error("the link does not work after it was down")
		}
		l.Close()
		wg.Wait()
	})
}

func TestDeletedInterfaceEndsDevice(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		l := newLink(t, kind)
		done := make(chan error, 1)
		go func() { done <- echo(l, 8) }()
		if !exchange(t, guestSocket(t), 100) {
			t.Fatal("the link does not work")
		}
		if err := netlink.LinkDel(l.guest); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, tap.ErrClosed) {
				t.Errorf("reader: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the reader still waits although the interface was deleted")
		}
		if _, err := l.WriteFrames([]tap.Frame{{Bufs: [][]byte{make([]byte, 60)}}}); !errors.Is(err, tap.ErrClosed) {
			t.Errorf("writer: %v", err)
		}
	})
}

func TestConcurrentWritersKeepFramesWhole(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		l := newLink(t, kind)
		fd := guestSocket(t)
		// A datagram sent by the guest serves as the template; each writer fills it with its own letter.
		unix.Write(fd, make([]byte, 1000))
		in := []tap.Frame{{Bufs: [][]byte{make([]byte, 2000)}}}
		for ok := false; !ok; ok = isUDP(in[0].Bufs[0][:in[0].Len]) {
			if _, err := l.ReadFrames(in); err != nil {
				t.Fatal(err)
			}
		}
		model := reflect(&in[0], in[0].Bufs[0][:in[0].Len])
		model.Header = tap.Header{}
		model.Bufs[0][40], model.Bufs[0][41] = 0, 0 // no checksum (RFC 768)
		const writers, each = 4, 50
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				body := bytes.Repeat([]byte{'a' + byte(w)}, 1000)
				f := []tap.Frame{{Bufs: [][]byte{model.Bufs[0][:20], model.Bufs[0][20:42], body[:500], body[500:]}}}
				f = append(f, f[0])
				for range each / 2 {
					if n, err := l.WriteFrames(f); n != 2 || err != nil {
						t.Errorf("%d, %v", n, err)
					}
					time.Sleep(time.Millisecond) // so that the guest's receive buffer does not overflow
				}
			})
		}
		count := map[byte]int{}
		b := make([]byte, 2000)
		for range writers * each {
			n, err := read(fd, b)
			if err != nil || n != 1000 || !bytes.Equal(b[:n], bytes.Repeat(b[:1], n)) {
				t.Fatalf("%d bytes, %v: % x", n, err, b[:16])
			}
			count[b[0]]++
		}
		wg.Wait()
		for w, n := range count {
			if n != each {
				t.Errorf("writer %c: %d of %d", w, n, each)
			}
		}
	})
}

func TestVLANFrameIsNotDeliveredUntagged(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		l := newLink(t, kind)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		send := func(frame []byte) {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.guest.Attrs().Index}); err != nil {
				t.Fatal(err)
			}
		}
		// EtherType 0x88b5 is for local experiments (IEEE 802). The first frame is tagged for VLAN 5.
		untagged, tagged := make([]byte, 60), make([]byte, 64)
		untagged[12], untagged[13] = 0x88, 0xb5
		copy(tagged[12:], []byte{0x81, 0, 0, 5, 0x88, 0xb5})
		send(tagged)
		send(untagged)
		in := []tap.Frame{{Bufs: [][]byte{make([]byte, 2000)}}}
		for seen := 0; seen == 0; {
			if _, err := l.ReadFrames(in); err != nil {
				t.Fatal(err)
			}
			b := in[0].Bufs[0][:in[0].Len]
			if len(b) >= 14 && b[12] == 0x88 && b[13] == 0xb5 {
				if seen++; kind == tap.KindPacket && l.Stats().RxDropped != 1 {
					t.Errorf("the tagged frame was delivered untagged: %+v", l.Stats())
				}
			}
		}
	})
}

func TestFromFDChecksTheKind(t *testing.T) {
	eachKind(t, func(t *testing.T, kind tap.Kind) {
		nettest.CheckLeaks(t)
		var fd int
		wrong := tap.KindTAP
		switch kind {
		case tap.KindTAP:
			fd, wrong = openTAP(t, true), tap.KindTAPPlain
		case tap.KindTAPPlain:
			fd = openTAP(t, false)
		case tap.KindPacket:
			fd = openPacket(t)
		}
		if _, err := tap.FromFD(os.NewFile(uintptr(fd), "link"), tap.Info{Kind: wrong}); err == nil {
			t.Errorf("FromFD accepted a %s as a %s", kind, wrong)
		}
	})
}
