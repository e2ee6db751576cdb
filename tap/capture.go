package tap

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// captureQueue frames may wait for the disk; more are left out of the capture, never held back from the guest.
	// At 64 KiB each they are 32 MiB at most.
	captureQueue = 512
	captureFlush = time.Second

	// Of the pcap file format (draft-ietf-opsawg-pcap): nanosecond magic, version, link type.
	pcapMagic    = 0xa1b23c4d
	pcapMajor    = 2
	pcapMinor    = 4
	pcapSnapLen  = 262144
	pcapEthernet = 1
)

// capture is a Device that writes down what passes.
type capture struct {
	Device
	w     io.WriteCloser
	log   *slog.Logger
	queue chan record
	lost  atomic.Uint64
	once  sync.Once
	mu    sync.RWMutex // held shared while a frame is queued
	ended bool         // guarded by mu
	done  chan struct{}
}

type record struct {
	at    time.Time
	frame []byte
}

// NewCapture returns a Device that passes everything to dev and writes a copy of each frame, of both directions, to w
// in pcap format with nanosecond times. Partial checksums are written as they are. A slow w loses frames of the
// capture and a failing one ends it; the traffic is never held up. Close closes both. dev stays the caller's when
// NewCapture fails; w is closed.
func NewCapture(dev Device, w io.WriteCloser, log *slog.Logger) (Device, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var h [24]byte
	e := binary.NativeEndian
	e.PutUint32(h[0:], pcapMagic)
	e.PutUint16(h[4:], pcapMajor)
	e.PutUint16(h[6:], pcapMinor)
	e.PutUint32(h[16:], pcapSnapLen)
	e.PutUint32(h[20:], pcapEthernet)
	if _, err := w.Write(h[:]); err != nil {
		w.Close()
		return nil, fmt.Errorf("tap: capture: %w", err)
	}
	c := &capture{Device: dev, w: w, log: log, queue: make(chan record, captureQueue), done: make(chan struct{})}
	go c.run()
	return c, nil
}

func (c *capture) ReadFrames(frames []Frame) (int, error) {
	n, err := c.Device.ReadFrames(frames)
	for i := range frames[:n] {
		c.add(frames[i].Bufs, frames[i].Len)
	}
	return n, err
}

func (c *capture) WriteFrames(frames []Frame) (int, error) {
	for i := range frames {
		size := 0
		for _, b := range frames[i].Bufs {
			size += len(b)
		}
		c.add(frames[i].Bufs, size)
	}
	return c.Device.WriteFrames(frames)
}

func (c *capture) add(bufs [][]byte, size int) {
	b := make([]byte, 0, size)
	for _, p := range bufs {
		b = append(b, p[:min(len(p), size-len(b))]...)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.ended {
		return
	}
	select {
	case c.queue <- record{time.Now(), b}:
	default:
		c.lost.Add(1)
	}
}

// end stops the queue, once.
func (c *capture) end() {
	c.once.Do(func() {
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
		close(c.queue)
	})
}

func (c *capture) Close() error {
	err := c.Device.Close()
	c.end()
	<-c.done
	return err
}

func (c *capture) run() {
	defer close(c.done)
	b := bufio.NewWriterSize(c.w, 1<<20)
	t := time.NewTicker(captureFlush)
	defer t.Stop()
	var failed error
	fail := func(err error) {
		if err != nil && failed == nil {
			failed = err
			c.log.Warn("packet capture ended", "err", err)
		}
	}
	for open := true; open; {
		select {
		case r, ok := <-c.queue:
			if open = ok; ok && failed == nil {
				fail(writeRecord(b, r))
			}
		case <-t.C:
			if failed == nil {
				fail(b.Flush())
			}
		}
	}
	if failed == nil {
		fail(b.Flush())
	}
	if err := c.w.Close(); err != nil {
		fail(err)
	}
	if n := c.lost.Load(); n > 0 {
		c.log.Warn("packet capture is incomplete: the disk was too slow", "frames", n)
	}
}

func writeRecord(w io.Writer, r record) error {
	var h [16]byte
	e := binary.NativeEndian
	e.PutUint32(h[0:], uint32(r.at.Unix()))
	e.PutUint32(h[4:], uint32(r.at.Nanosecond()))
	e.PutUint32(h[8:], uint32(len(r.frame)))
	e.PutUint32(h[12:], uint32(len(r.frame)))
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(r.frame)
	return err
}
