package guest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// RawAnswer is what came back to a packet that was sent as a frame.
type RawAnswer string

const (
	NoAnswer         RawAnswer = ""
	AnsweredSYNACK   RawAnswer = "SYN-ACK"
	AnsweredRST      RawAnswer = "RST"
	AnsweredSegment  RawAnswer = "another TCP segment"
	AnsweredDatagram RawAnswer = "datagram"
)

// AnsweredICMP is an ICMP or ICMPv6 error.
func AnsweredICMP(kind, code byte) RawAnswer {
	return RawAnswer(fmt.Sprintf("ICMP type %d code %d", kind, code))
}

// SendSYN sends a SYN as a frame of the guest's own making, around the guest's kernel.
type SendSYN struct {
	To   netip.AddrPort
	Wait time.Duration // for the answer; 0 for less than a second
}

func (op SendSYN) run() (RawAnswer, error) {
	w, err := openWire()
	if err != nil {
		return NoAnswer, err
	}
	defer w.close()
	from := uint16(20000 + rand.IntN(10000))
	if err := w.send(w.ip(op.To.Addr(), protoTCP, tcpSegment(from, op.To.Port(), tcpSYN, 0), 16)); err != nil {
		return NoAnswer, err
	}
	return w.answer(op.Wait, from, op.To.Port())
}

// SendDatagram is SendSYN with a UDP datagram.
type SendDatagram struct {
	To   netip.AddrPort
	Wait time.Duration // for the answer; 0 for less than a second
}

func (op SendDatagram) run() (RawAnswer, error) {
	w, err := openWire()
	if err != nil {
		return NoAnswer, err
	}
	defer w.close()
	from := uint16(30000 + rand.IntN(10000))
	if err := w.send(w.ip(op.To.Addr(), protoUDP, udpSegment(from, op.To.Port(), "hello"), 6)); err != nil {
		return NoAnswer, err
	}
	return w.answer(op.Wait, from, op.To.Port())
}

// SendSYNs sends the SYNs of Count connections as frames. The result is how many.
type SendSYNs struct {
	To    netip.AddrPort
	Count int
}

func (op SendSYNs) run() (sent int, err error) {
	w, err := openWire()
	if err != nil {
		return 0, err
	}
	defer w.close()
	return w.sendSYNs(op.To, 1024, op.Count)
}

// SendLoopbackSYNs sends SYNs as frames straight to lo, with a mark, from the guest's own address, with empty link
// addresses. The result is how many.
type SendLoopbackSYNs struct {
	Mark  uint32
	To    netip.AddrPort
	Count int
}

func (op SendLoopbackSYNs) run() (sent int, err error) {
	w, err := openWire()
	if err != nil {
		return 0, err
	}
	defer w.close()
	if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_MARK, int(op.Mark)); err != nil {
		return 0, err
	}
	w.to.Ifindex = 1
	w.mac, w.gw = make(net.HardwareAddr, 6), make(net.HardwareAddr, 6)
	return w.sendSYNs(op.To, 2048, op.Count)
}

// sendSYNs sends count SYNs from as many ports.
func (w *wire) sendSYNs(to netip.AddrPort, firstPort uint16, count int) (sent int, err error) {
	for i := range count {
		segment := tcpSegment(firstPort+uint16(i), to.Port(), tcpSYN, 0)
		if err := w.send(w.ip(to.Addr(), protoTCP, segment, 16)); err != nil {
			return i, err
		}
	}
	return count, nil
}
