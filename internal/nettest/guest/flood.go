package guest

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// FloodSYNs sends the SYNs of connections that no program has begun, as frames, Rate a second for that time. Each comes from
// another port, and they go to all of To in turn. The result is how many were sent.
type FloodSYNs struct {
	To    []netip.AddrPort
	Rate  int
	Lasts time.Duration
}

func (op FloodSYNs) run() (sent int, err error) {
	const (
		ports     = 16384
		firstPort = 12000 // below the ports that the kernel gives to programs
		pace      = time.Millisecond
	)
	w, err := openWire()
	if err != nil {
		return 0, err
	}
	defer w.close()
	// The sender shares the processors with what is measured, so it spends as little as it can on a frame.
	if err := unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return 0, fmt.Errorf("send past the queueing discipline: %w", err)
	}
	frames := make([][]byte, ports)
	for i := range frames {
		to := op.To[i%len(op.To)]
		frames[i] = w.ip(to.Addr(), protoTCP, tcpSegment(firstPort+uint16(i), to.Port(), tcpSYN, 0), 16)
	}
	begin := time.Now()
	for {
		gone := time.Since(begin)
		if gone >= op.Lasts {
			return sent, nil
		}
		for due := int(gone.Seconds() * float64(op.Rate)); sent < due; sent++ {
			if err := w.send(frames[sent%ports]); err != nil && err != unix.ENOBUFS {
				return sent, err
			}
		}
		time.Sleep(pace)
	}
}

// Upload connects to a server that reads, and sends to it without end.
type Upload struct{ To Target }

func (op Upload) run() (Outcome, error) {
	c, err := op.To.dial(patience)
	if err != nil {
		return OutcomeOf(err), nil
	}
	go sendAlways(c)
	return OK, nil
}

func sendAlways(c net.Conn) {
	b := make([]byte, 128<<10)
	for {
		if _, err := c.Write(b); err != nil {
			c.Close()
			return
		}
	}
}
