package tap

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// captureQueue bytes may wait for the disk; frames beyond are left out of the capture, never held back from the
	// guest. While as much again is being written, they are 16 MiB: 128 frames of 64 KiB each.
	captureQueue = 8 << 20
	// captureChunk bytes are worth a write of their own; less waits for captureFlush.
	captureChunk = 256 << 10
	captureFlush = time.Second
	// captureCloseWait is how long Close waits for the rest to be written; then the file is closed under the writer.
	captureCloseWait = 2 * time.Second

	// Of the pcap file format (draft-ietf-opsawg-pcap): nanosecond magic, version, link type, sizes.
	pcapMagic     = 0xa1b23c4d
	pcapMajor     = 2
	pcapMinor     = 4
	pcapSnapLen   = 262144
	pcapEthernet  = 1
	pcapHeaderLen = 24
	pcapRecordLen = 16
)

// capture is a Device that writes down what passes. The data plane appends to pending under a lock that is held for a
// copy only; one goroutine, which Close ends, swaps pending for an empty buffer and writes it out.
type capture struct {
	Device
	log     *slog.Logger
	w       io.WriteCloser
	closeW  sync.Once
	stopped sync.Once
	full    chan struct{} // capacity 1: pending holds a chunk
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed by the writer at its end

	mu      sync.Mutex
	pending []byte // guarded by mu, as are all below
	lost    uint64 // frames
	ended   bool   // nothing is recorded any more
}

// NewCapture returns a Device that passes everything to dev and writes a copy of each frame, of both directions, to w
// in pcap format with nanosecond times. Frames to the guest are written as handed over, before the kernel may drop
// them, so that an answer never stands before its question. Partial checksums are written as they are. A slow w loses
// frames of the capture and a failing one ends it; the traffic is never held up. Close closes both. dev stays the
// caller's when NewCapture fails; w is closed. A nil log discards.
func NewCapture(dev Device, w io.WriteCloser, log *slog.Logger) (Device, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var h [pcapHeaderLen]byte
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
	c := &capture{
		Device: dev, w: w, log: log,
		full: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go c.run()
	return c, nil
}

func (c *capture) ReadFrames(frames []Frame) (int, error) {
	n, err := c.Device.ReadFrames(frames)
	for i := range frames[:n] {
		if frames[i].Len > 0 { // 0: dropped by the device
			c.add(frames[i].Bufs, frames[i].Len)
		}
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

// add appends one record: the first size bytes of bufs.
func (c *capture) add(bufs [][]byte, size int) {
	now := time.Now()
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	if len(c.pending)+pcapRecordLen+size > captureQueue {
		c.lost++
		first := c.lost == 1
		c.mu.Unlock()
		if first {
			c.log.Warn("packet capture: the disk is too slow, frames are left out")
		}
		return
	}
	e := binary.NativeEndian
	p := c.pending
	p = e.AppendUint32(p, uint32(now.Unix()))
	p = e.AppendUint32(p, uint32(now.Nanosecond()))
	p = e.AppendUint32(p, uint32(size))
	p = e.AppendUint32(p, uint32(size))
	for _, b := range bufs {
		b = b[:min(len(b), size)]
		size -= len(b)
		p = append(p, b...)
	}
	c.pending = p
	wake := len(p) >= captureChunk
	c.mu.Unlock()
	if wake {
		select {
		case c.full <- struct{}{}:
		default:
		}
	}
}

// end stops the recording and returns how many frames were left out.
func (c *capture) end() (lost uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	return c.lost
}

// run writes until Close, or until w fails.
func (c *capture) run() {
	defer close(c.done)
	t := time.NewTicker(captureFlush)
	defer t.Stop()
	var spare []byte
	for open := true; open; {
		select {
		case <-c.full:
		case <-t.C:
		case <-c.stop:
			open = false
		}
		c.mu.Lock()
		out := c.pending
		c.pending = spare[:0]
		c.mu.Unlock()
		if len(out) > 0 {
			if _, err := c.w.Write(out); err != nil {
				c.end()
				c.log.Warn("packet capture ended", "err", err)
				break
			}
		}
		spare = out
	}
	lost := c.end()
	if err := c.closeFile(); err != nil {
		c.log.Warn("packet capture: closing the file", "err", err)
	}
	if lost > 0 {
		c.log.Warn("packet capture is incomplete: the disk was too slow", "frames", lost)
	}
}

func (c *capture) closeFile() (err error) {
	c.closeW.Do(func() { err = c.w.Close() })
	return err
}

func (c *capture) Close() error {
	err := c.Device.Close()
	c.stopped.Do(func() {
		c.end()
		close(c.stop)
		select {
		case <-c.done:
		case <-time.After(captureCloseWait):
			// A pipe nobody reads: closing it ends the write. The writer ends then, or with the process.
			c.closeFile()
		}
	})
	return err
}
