package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/tap"
)

// receiveARP answers ARP requests (RFC 826) for the addresses of isNeighbour only. Netstack in promiscuous mode would answer
// for every address, and the guest would see a neighbour everywhere.
func (p *port) receiveARP(b []byte) {
	a := header.ARP(b[ethLen:])
	if !a.IsValid() {
		p.s.stats.drop(DropARP)
		return
	}
	src := netip.AddrFrom4([4]byte(a.ProtocolAddressSender()))
	target := netip.AddrFrom4([4]byte(a.ProtocolAddressTarget()))
	if [6]byte(a.HardwareAddressSender()) == [6]byte(b[6:12]) {
		p.learn(src, b[6:12])
	}
	if a.Op() != header.ARPRequest || !p.s.isNeighbour(target) || src == target {
		return // an announcement, or a request for another address of the link: not an error, so not counted
	}
	out := make([]byte, ethLen+header.ARPSize)
	copy(out[0:6], b[6:12])
	r := header.ARP(out[ethLen:])
	r.SetIPv4OverEthernet()
	r.SetOp(header.ARPReply)
	copy(r.HardwareAddressSender(), p.s.mac[:])
	copy(r.ProtocolAddressSender(), a.ProtocolAddressTarget())
	copy(r.HardwareAddressTarget(), a.HardwareAddressSender())
	copy(r.ProtocolAddressTarget(), a.ProtocolAddressSender())
	_ = p.writeFrame(tap.Header{}, header.ARPProtocolNumber, out)
}

// ipv4Header fills b (at least 20 bytes) with a header without options for a payload of size bytes.
func (s *Stack) ipv4Header(b []byte, src, dst netip.Addr, proto, ttl, tos uint8, size int, flags uint16) {
	b[0], b[1] = 0x45, tos
	binary.BigEndian.PutUint16(b[2:], uint16(header.IPv4MinimumSize+size))
	binary.BigEndian.PutUint16(b[4:], uint16(s.ipID.Add(1)))
	binary.BigEndian.PutUint16(b[6:], flags)
	if ttl == 0 {
		ttl = defaultTTL
	}
	b[8], b[9], b[10], b[11] = ttl, proto, 0, 0
	sa, da := src.As4(), dst.As4()
	copy(b[12:16], sa[:])
	copy(b[16:20], da[:])
	putIPv4Checksum(b)
}

// ipv6Header fills b (at least 40 bytes) for a payload of size bytes.
func ipv6Header(b []byte, src, dst netip.Addr, proto, hops, class uint8, size int) {
	b[0], b[1], b[2], b[3] = 0x60|class>>4, class<<4, 0, 0
	binary.BigEndian.PutUint16(b[4:], uint16(size))
	if hops == 0 {
		hops = defaultTTL
	}
	b[6], b[7] = proto, hops
	sa, da := src.As16(), dst.As16()
	copy(b[8:24], sa[:])
	copy(b[24:40], da[:])
}
