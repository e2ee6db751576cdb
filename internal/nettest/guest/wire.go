package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
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

// wire sends and receives frames on the interface of the default route. It receives those of lo as well, where the splice
// path answers.
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

// answer waits for what comes back to local port from: a segment of a remote's port, or an ICMP error.
func (w *wire) answer(wait time.Duration, from, port uint16) (RawAnswer, error) {
	if wait == 0 {
		wait = 700 * time.Millisecond
	}
	deadline := time.Now().Add(wait)
	b := make([]byte, 64<<10)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return NoAnswer, nil
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n == 0 || errors.Is(err, unix.EINTR) {
			continue
		}
		n, source, err := unix.Recvfrom(w.fd, b, 0)
		if err != nil {
			return "", err
		}
		if ll, ok := source.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if what := classify(b[:n], from, port); what != NoAnswer {
			return what, nil
		}
	}
}

// classify names a frame when it answers local port from, remote port; NoAnswer otherwise.
func classify(frame []byte, from, port uint16) RawAnswer {
	if len(frame) < etherHeader+20 {
		return NoAnswer
	}
	packet, proto, header := frame[etherHeader:], byte(0), 0
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		proto, header = packet[9], int(packet[0]&15)*4
	case etherIPv6:
		if len(packet) < 40 {
			return NoAnswer
		}
		proto, header = packet[6], 40
	}
	if header == 0 || len(packet) < header+8 {
		return NoAnswer
	}
	t := packet[header:]
	ports := binary.BigEndian.Uint16(t[0:]) == port && binary.BigEndian.Uint16(t[2:]) == from
	switch {
	case proto == protoTCP && ports && len(t) >= 20:
		switch flags := t[13]; {
		case flags&tcpRST != 0:
			return AnsweredRST
		case flags&(tcpSYN|tcpACK) == tcpSYN|tcpACK:
			return AnsweredSYNACK
		}
		return AnsweredSegment
	case proto == protoUDP && ports:
		return AnsweredDatagram
	case proto == protoICMP && t[0] != 0 && t[0] != 8 && quotesPort(t[8:], 20, from),
		proto == protoICMPv6 && t[0] < 128 && quotesPort(t[8:], 40, from):
		return AnsweredICMP(t[0], t[1])
	}
	return NoAnswer
}

// quotesPort reports whether the packet that an ICMP error quotes, with an IP header of the given length, came from port
// from. Learning the gateway's address causes an error too.
func quotesPort(quoted []byte, header int, from uint16) bool {
	return len(quoted) >= header+2 && binary.BigEndian.Uint16(quoted[header:]) == from
}
