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
	// captureQueue is how many bytes may wait to be written. Further frames are omitted from the capture but still forwarded.
	// A second buffer of this size may be being written, so a capture uses up to 16 MiB.
	captureQueue = 8 << 20
	// captureChunk is how many queued bytes start a write at once; fewer are written every captureFlush.
	captureChunk = 256 << 10
	captureFlush = time.Second
	// captureCloseWait is how long Close waits for the rest to be written; then it closes the file, which ends the write.
	captureCloseWait = 2 * time.Second

	// The pcap file format (draft-ietf-opsawg-pcap): magic number for nanoseconds, version, limit and link type, sizes.
	pcapMagic     = 0xa1b23c4d
	pcapMajor     = 2
	pcapMinor     = 4
	pcapSnapLen   = 262144
	pcapEthernet  = 1
	pcapHeaderLen = 24
	pcapRecordLen = 16
)

// capture is a Device that records the frames of another one. The data plane appends records to pending under a lock that is held
// for a copy only; one goroutine, which Close ends, swaps pending for an empty buffer and writes the full one.
type capture struct {
	Device
	log     *slog.Logger
	w       io.WriteCloser
	closeW  sync.Once
	stopped sync.Once
	full    chan struct{} // capacity 1: signals that pending holds captureChunk bytes
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when the writer has ended

	mu      sync.Mutex
	pending []byte // records to be written; guarded by mu
	lost    uint64 // omitted frames; guarded by mu
	ended   bool   // no more frames are recorded; guarded by mu
}

// NewCapture returns a Device that passes every call to dev and writes a copy of each frame, in both directions, to w in pcap
// format with nanosecond timestamps. A frame to the guest is recorded before it is written to dev, even if the kernel then
// drops it: so a response never precedes its request in the file. Partial checksums are recorded as they are. If w is slow,
// frames are omitted from the capture, and if it fails, the capture ends; traffic is never delayed. Close closes dev and w. If
// NewCapture fails, dev remains the caller's and w is closed. A nil log discards.
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
		if frames[i].Len > 0 { // 0: the device dropped the frame
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

// add appends a record of the first size bytes of bufs.
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
			c.log.Warn("packet capture: the disk is too slow, frames are omitted from the file")
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

// end stops the recording and returns how many frames were omitted.
func (c *capture) end() (lost uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	return c.lost
}

// run is the writer goroutine: it writes pending until Close or until w fails.
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
				c.log.Warn("packet capture ended: the file cannot be written", "err", err)
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
		c.log.Warn("packet capture is incomplete: the disk was too slow", "omitted", lost)
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
			// The writer is blocked, for instance on a pipe that no process reads. Closing the file ends the write if the file
			// supports that; otherwise the goroutine ends with the process.
			c.closeFile()
		}
	})
	return err
}
