package guest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
)

// SendShortFrames sends frames of 14 to 33 bytes, of every EtherType that is parsed and some that are not. The result is
// how many.
type SendShortFrames struct{}

func (SendShortFrames) run() (sent int, err error) {
	w, err := openWire()
	if err != nil {
		return sent, err
	}
	defer w.close()
	for _, kind := range []uint16{etherIPv4, etherIPv6, etherARP, 0x8100, 0x0001, 0xffff} {
		for length := 0; length <= 33-etherHeader; length++ {
			payload := make([]byte, length)
			for i := range payload {
				payload[i] = byte(rand.Uint32())
			}
			if length > 0 && kind == etherIPv4 {
				payload[0] = 0x45
			}
			if length > 0 && kind == etherIPv6 {
				payload[0] = 0x60
			}
			if err := w.send(w.ether(kind, payload)); err != nil {
				return sent, fmt.Errorf("frame of %d bytes: %w", etherHeader+length, err)
			}
			sent++
		}
	}
	return sent, nil
}

// SendBadHeaders sends packets with wrong versions, lengths, offsets and checksums. The result is how many.
type SendBadHeaders struct{ To netip.AddrPort }

func (op SendBadHeaders) run() (sent int, err error) {
	dst, port := op.To.Addr(), op.To.Port()
	w, err := openWire()
	if err != nil {
		return sent, err
	}
	defer w.close()
	fresh := func() []byte { return w.ip(dst, protoTCP, tcpSegment(4000, port, tcpSYN, 0), 16) }
	var frames [][]byte
	mangle := func(change func(packet []byte)) {
		f := fresh()
		change(f[etherHeader:])
		frames = append(frames, f)
	}
	for ihl := byte(0); ihl < 16; ihl++ {
		mangle(func(p []byte) { p[0] = 4<<4 | ihl; resum(p) })
	}
	for version := byte(0); version < 16; version++ {
		mangle(func(p []byte) { p[0] = version<<4 | 5; resum(p) })
	}
	for _, total := range []uint16{0, 1, 19, 20, 21, 39, 41, 1500, 65535} {
		mangle(func(p []byte) { binary.BigEndian.PutUint16(p[2:], total); resum(p) })
	}
	mangle(func(p []byte) { p[10] ^= 0xff })
	for offset := byte(0); offset < 16; offset++ {
		if offset != 5 {
			mangle(func(p []byte) { p[20+12] = offset << 4 })
		}
	}
	for length := range 20 {
		frames = append(frames, w.ip(dst, protoTCP, make([]byte, length), -1))
		if length < 8 {
			frames = append(frames, w.ip(dst, protoUDP, make([]byte, length), -1), w.ip(dst, protoICMP, make([]byte, length), -1))
		}
	}
	for _, f := range frames {
		if err := w.send(f); err != nil {
			return sent, err
		}
	}
	return len(frames), nil
}

// resum corrects the IPv4 header's checksum, over its first 20 bytes.
func resum(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:20]))
}

// SendUrgentFlags sends segments with URG and urgent pointers of all magnitudes. The result is how many.
type SendUrgentFlags struct{ To netip.AddrPort }

func (op SendUrgentFlags) run() (sent int, err error) {
	w, err := openWire()
	if err != nil {
		return sent, err
	}
	defer w.close()
	for _, flags := range []byte{tcpURG, tcpURG | tcpSYN, tcpURG | tcpACK, tcpURG | tcpRST} {
		for pointer := uint32(0); pointer < 1<<16; pointer = pointer*2 + 1 {
			segment := tcpSegment(5000, op.To.Port(), flags, uint16(pointer))
			segment = append(segment, strings.Repeat("u", int(pointer%9))...)
			if err := w.send(w.ip(op.To.Addr(), protoTCP, segment, 16)); err != nil {
				return sent, err
			}
			sent++
		}
	}
	return sent, nil
}
