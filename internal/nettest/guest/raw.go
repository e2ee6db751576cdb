package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	etherHeader = 14
	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd
	etherARP    = 0x0806

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
	tcpURG = 0x20
)

// wire is the uplink, seen as frames. What comes back is seen on lo as well, where the kernel's road answers.
type wire struct {
	fd       int
	to       unix.SockaddrLinklayer
	mac, gw  net.HardwareAddr
	ip4, ip6 netip.Addr
}

// openWire opens an AF_PACKET socket on the interface of the default route and learns the gateway's MAC.
func openWire() (w *wire, err error) {
	routes, err := netlink.RouteList(nil, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Gw == nil {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return nil, err
		}
		return newWire(link, r.Gw)
	}
	return nil, errors.New("no default route")
}

func newWire(link netlink.Link, gateway net.IP) (*wire, error) {
	w := &wire{mac: link.Attrs().HardwareAddr}
	addrs, err := netlink.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		switch ip = ip.Unmap(); {
		case ok && ip.Is4():
			w.ip4 = ip
		case ok && !ip.IsLinkLocalUnicast():
			w.ip6 = ip
		}
	}
	if w.gw, err = neighbour(link, gateway); err != nil {
		return nil, err
	}
	w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	w.to = unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}
	return w, nil
}

func (w *wire) close() { unix.Close(w.fd) }

// neighbour makes the kernel resolve the gateway, and reads what it found.
func neighbour(link netlink.Link, ip net.IP) (net.HardwareAddr, error) {
	c, err := net.Dial("udp", net.JoinHostPort(ip.String(), "9"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for range 20 {
		_, _ = c.Write([]byte("x"))
		list, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
		if err != nil {
			return nil, err
		}
		for _, n := range list {
			if n.IP.Equal(ip) && len(n.HardwareAddr) == 6 {
				return n.HardwareAddr, nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, fmt.Errorf("%v does not answer ARP", ip)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) send(frame []byte) error {
	return unix.Sendto(w.fd, frame, 0, &w.to)
}

// ether puts an Ethernet header towards the gateway before a payload.
func (w *wire) ether(kind uint16, payload []byte) []byte {
	f := append(append(append([]byte{}, w.gw...), w.mac...), byte(kind>>8), byte(kind))
	return append(f, payload...)
}

// ip puts IP and Ethernet headers before a transport segment, whose checksum field is at sumAt (-1 for none).
func (w *wire) ip(dst netip.Addr, proto byte, segment []byte, sumAt int) []byte {
	src, kind := w.ip4, uint16(etherIPv4)
	if dst.Is6() {
		src, kind = w.ip6, etherIPv6
	}
	if sumAt >= 0 {
		binary.BigEndian.PutUint16(segment[sumAt:], transportSum(src, dst, proto, segment))
	}
	return w.ether(kind, append(ipHeader(src, dst, proto, len(segment)), segment...))
}

func ipHeader(src, dst netip.Addr, proto byte, length int) []byte {
	if dst.Is6() {
		h := make([]byte, 8, 40)
		h[0] = 6 << 4
		binary.BigEndian.PutUint16(h[4:], uint16(length))
		h[6], h[7] = proto, 64
		return append(append(h, src.AsSlice()...), dst.AsSlice()...)
	}
	h := make([]byte, 12, 20)
	h[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(h[2:], uint16(20+length))
	h[8], h[9] = 64, proto
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], ^sum(0, h))
	return h
}

// sum is the ones' complement sum of RFC 1071.
func sum(start uint32, b []byte) uint16 {
	s := start
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func transportSum(src, dst netip.Addr, proto byte, segment []byte) uint16 {
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	start := uint32(sum(0, pseudo)) + uint32(proto) + uint32(len(segment))
	return ^sum(start, segment)
}

func tcpSegment(from, to uint16, flags byte, urgent uint16) []byte {
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t[0:], from)
	binary.BigEndian.PutUint16(t[2:], to)
	binary.BigEndian.PutUint32(t[4:], rand.Uint32())
	t[12], t[13] = 5<<4, flags
	binary.BigEndian.PutUint16(t[14:], 64240)
	binary.BigEndian.PutUint16(t[18:], urgent)
	return t
}

func udpSegment(from, to uint16, data string) []byte {
	u := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(u[0:], from)
	binary.BigEndian.PutUint16(u[2:], to)
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(data)))
	return append(u, data...)
}

// target parses ADDR PORT.
func target(args []string) (netip.Addr, uint16, error) {
	dst, err := netip.ParseAddr(arg(args, 0, ""))
	if err != nil {
		return dst, 0, err
	}
	port, err := number(args, 1, 80)
	return dst, uint16(port), err
}

// rawTCP: ADDR PORT [WAIT]. Sends a SYN as a frame of our own making and prints what answers: "synack", "rst",
// "icmp TYPE CODE" or "none".
func rawTCP(args []string) (string, error) {
	dst, port, err := target(args)
	if err != nil {
		return "", err
	}
	w, err := openWire()
	if err != nil {
		return "", err
	}
	defer w.close()
	from := uint16(20000 + rand.IntN(10000))
	if err := w.send(w.ip(dst, protoTCP, tcpSegment(from, port, tcpSYN, 0), 16)); err != nil {
		return "", err
	}
	return w.answer(args, from, port)
}

// rawUDP: ADDR PORT [WAIT]. The same with a datagram: "answer", "icmp TYPE CODE" or "none".
func rawUDP(args []string) (string, error) {
	dst, port, err := target(args)
	if err != nil {
		return "", err
	}
	w, err := openWire()
	if err != nil {
		return "", err
	}
	defer w.close()
	from := uint16(30000 + rand.IntN(10000))
	if err := w.send(w.ip(dst, protoUDP, udpSegment(from, port, "hello"), 6)); err != nil {
		return "", err
	}
	return w.answer(args, from, port)
}

// answer waits for what comes back to local port from: a segment of a remote's port, or an ICMP error.
func (w *wire) answer(args []string, from, port uint16) (string, error) {
	wait, err := duration(args, 2, 700*time.Millisecond)
	if err != nil {
		return "", err
	}
	deadline := time.Now().Add(wait)
	b := make([]byte, 64<<10)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return "none", nil
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n == 0 || errors.Is(err, unix.EINTR) {
			continue
		}
		n, from2, err := unix.Recvfrom(w.fd, b, 0)
		if err != nil {
			return "", err
		}
		if ll, ok := from2.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if what := classify(b[:n], from, port); what != "" {
			return what, nil
		}
	}
}

// classify names a frame when it answers local port from, remote port; "" otherwise.
func classify(frame []byte, from, port uint16) string {
	if len(frame) < etherHeader+20 {
		return ""
	}
	packet, proto, header := frame[etherHeader:], byte(0), 0
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		proto, header = packet[9], int(packet[0]&15)*4
	case etherIPv6:
		if len(packet) < 40 {
			return ""
		}
		proto, header = packet[6], 40
	}
	if header == 0 || len(packet) < header+8 {
		return ""
	}
	t := packet[header:]
	ports := binary.BigEndian.Uint16(t[0:]) == port && binary.BigEndian.Uint16(t[2:]) == from
	switch {
	case proto == protoTCP && ports && len(t) >= 20:
		switch flags := t[13]; {
		case flags&tcpRST != 0:
			return "rst"
		case flags&(tcpSYN|tcpACK) == tcpSYN|tcpACK:
			return "synack"
		}
		return "segment"
	case proto == protoUDP && ports:
		return "answer"
	case proto == protoICMP && t[0] != 0 && t[0] != 8 && quotesPort(t[8:], 20, from),
		proto == protoICMPv6 && t[0] < 128 && quotesPort(t[8:], 40, from):
		return fmt.Sprintf("icmp %d %d", t[0], t[1])
	}
	return ""
}

// quotesPort says whether the packet that an ICMP error quotes, with an IP header of the given length, came from port
// from. Learning the gateway's address causes an error too.
func quotesPort(quoted []byte, header int, from uint16) bool {
	return len(quoted) >= header+2 && binary.BigEndian.Uint16(quoted[header:]) == from
}

// rawShort sends frames of 14 to 33 bytes, of every kind that is parsed, and prints how many.
func rawShort([]string) (string, error) {
	w, err := openWire()
	if err != nil {
		return "", err
	}
	defer w.close()
	sent := 0
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
				return "", fmt.Errorf("frame of %d bytes: %w", etherHeader+length, err)
			}
			sent++
		}
	}
	return fmt.Sprint(sent), nil
}

// rawBad: ADDR. Sends packets whose headers lie, and prints how many.
func rawBad(args []string) (string, error) {
	dst, port, err := target(args)
	if err != nil {
		return "", err
	}
	w, err := openWire()
	if err != nil {
		return "", err
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
			return "", err
		}
	}
	return fmt.Sprint(len(frames)), nil
}

// resum makes the IPv4 header's checksum right again over its first 20 bytes.
func resum(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:20]))
}

// rawURG: ADDR PORT. Sends segments with URG and every kind of pointer, and prints how many.
func rawURG(args []string) (string, error) {
	dst, port, err := target(args)
	if err != nil {
		return "", err
	}
	w, err := openWire()
	if err != nil {
		return "", err
	}
	defer w.close()
	sent := 0
	for _, flags := range []byte{tcpURG, tcpURG | tcpSYN, tcpURG | tcpACK, tcpURG | tcpRST} {
		for pointer := uint32(0); pointer < 1<<16; pointer = pointer*2 + 1 {
			segment := tcpSegment(5000, port, flags, uint16(pointer))
			segment = append(segment, strings.Repeat("u", int(pointer%9))...)
			if err := w.send(w.ip(dst, protoTCP, segment, 16)); err != nil {
				return "", err
			}
			sent++
		}
	}
	return fmt.Sprint(sent), nil
}
