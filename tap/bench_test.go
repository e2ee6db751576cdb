package tap_test

import (
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/tap"
)

var (
	benchKinds = []tap.Kind{tap.KindTAP, tap.KindPacket}
	// Bytes of UDP payload: for frames of 64 bytes and for the largest.
	benchSizes = []int{22, 65000}
)

// model has the guest send one datagram, reads it and returns the response frame.
func model(b *testing.B, l *link, fd, size int) tap.Frame {
	unix.Write(fd, make([]byte, size))
	in := []tap.Frame{{Bufs: [][]byte{make([]byte, 1<<17)}}}
	for {
		if _, err := l.ReadFrames(in); err != nil {
			b.Fatal(err)
		}
		if data := in[0].Bufs[0][:in[0].Len]; isUDP(data) {
			return reflect(&in[0], data)
		}
	}
}

func forKindsAndSizes(b *testing.B, fn func(b *testing.B, l *link, fd, size int)) {
	for _, kind := range benchKinds {
		for _, size := range benchSizes {
			b.Run(string(kind)+"/"+strconv.Itoa(size), func(b *testing.B) {
				if !enter(b) {
					return
				}
				l := newLink(b, kind)
				fd := guestSocket(b)
				b.SetBytes(int64(size))
				fn(b, l, fd, size)
				l.Close()
			})
		}
	}
}

// BenchmarkWrite writes single frames to the guest's kernel, which queues them in a socket that is not read.
func BenchmarkWrite(b *testing.B) {
	forKindsAndSizes(b, func(b *testing.B, l *link, fd, size int) {
		f := []tap.Frame{model(b, l, fd, size)}
		for b.Loop() {
			l.WriteFrames(f)
		}
	})
}

// BenchmarkWriteBatch writes eight frames per call.
func BenchmarkWriteBatch(b *testing.B) {
	forKindsAndSizes(b, func(b *testing.B, l *link, fd, size int) {
		f := make([]tap.Frame, 8)
		f[0] = model(b, l, fd, size)
		for i := range f {
			f[i] = f[0]
		}
		b.SetBytes(int64(size * len(f)))
		for b.Loop() {
			l.WriteFrames(f)
		}
	})
}

// BenchmarkRead reads frames that the guest sends as fast as it can; one operation is one frame.
func BenchmarkRead(b *testing.B) {
	forKindsAndSizes(b, func(b *testing.B, l *link, fd, size int) {
		data := make([]byte, size)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					unix.Write(fd, data)
				}
			}
		})
		in := make([]tap.Frame, 8)
		for i := range in {
			in[i].Bufs = [][]byte{make([]byte, 1<<16), make([]byte, 128)}
		}
		frames, calls, ready := 0, 0, 0
		for b.Loop() {
			if ready == 0 {
				var err error
				if ready, err = l.ReadFrames(in); err != nil {
					b.Fatal(err)
				}
				frames += ready
				calls++
			}
			ready--
		}
		b.ReportMetric(float64(frames)/float64(calls), "frames/call")
		close(stop)
		wg.Wait()
	})
}

// BenchmarkRoundTrip measures a small datagram and its response, which is mostly the cost of waking up. "poller" uses the
// Device; the others use plain system calls on a thread of their own.
func BenchmarkRoundTrip(b *testing.B) {
	for _, kind := range benchKinds {
		b.Run(string(kind)+"/poller", func(b *testing.B) {
			if enter(b) {
				l := newLink(b, kind)
				go echo(l, 8)
				roundTrips(b)
				l.Close()
			}
		})
		b.Run(string(kind)+"/blocking", func(b *testing.B) {
			if enter(b) {
				fd := openKind(b, kind)
				configure(b, nil)
				unix.SetNonblock(fd, false)
				go rawEcho(fd, 0)
				roundTrips(b)
			}
		})
		b.Run(string(kind)+"/spin20us", func(b *testing.B) {
			if enter(b) {
				fd := openKind(b, kind)
				configure(b, nil)
				go rawEcho(fd, 20*time.Microsecond)
				roundTrips(b)
			}
		})
	}
}

// rawEcho sends the guest's UDP frames back until the process ends. On a non-blocking descriptor it polls for the duration of spin,
// then sleeps in poll(2).
func rawEcho(fd int, spin time.Duration) {
	runtime.LockOSThread()
	buf := make([]byte, 1<<17)
	last := time.Now()
	for {
		n, err := read(fd, buf)
		if err == unix.EAGAIN {
			if time.Since(last) > spin {
				unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
				last = time.Now()
			}
			continue
		}
		if err != nil {
			return
		}
		last = time.Now()
		if data := buf[tap.HeaderLen:n]; isUDP(data) {
			reflect(&tap.Frame{}, data)
			unix.Write(fd, buf[:n])
		}
	}
}

func roundTrips(b *testing.B) {
	fd := guestSocket(b)
	data := make([]byte, 64)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for b.Loop() {
		unix.Write(fd, data)
		if _, err := read(fd, data); err != nil {
			b.Fatal(err)
		}
	}
}
