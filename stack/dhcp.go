package stack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/tap"
)

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// dhcpLease is the lease time of an address that does not change while the network exists. Clients renew after half of it.
const dhcpLease = 24 * time.Hour

// dhcpHostLease is the lease time of an address of the host's, see Config.lease.
const dhcpHostLease = 10 * time.Minute

// fqdnEncoded is the flag in option 81 for a name in DNS wire format (RFC 4702 2.1).
const fqdnEncoded = 0x04

const (
	dhcpClientPort = 68

	// dhcpMaxMessage is the size in bytes that every client must accept: an IP packet of 576 bytes (RFC 2131 2) less IP and UDP
	// headers.
	dhcpMaxMessage = 576 - header.IPv4MinimumSize - udpLen
)

// handleDHCP answers a DHCPv4 client (RFC 2131). There is one address to assign, so the server keeps no state: it offers the
// address on DISCOVER, acknowledges REQUEST and INFORM, and refuses a REQUEST for another address.
func (s *Stack) handleDHCP(p *port, d *Datagram) {
	if !s.config().Guest4.IsValid() || s.config().NoDHCP {
		s.stats.drop(DropDHCP)
		return
	}
	req, err := dhcpv4.FromBytes(d.Payload)
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest || len(req.ClientHWAddr) != 6 {
		s.stats.drop(DropDHCP)
		return
	}
	gw, guest := net.IP(s.config().Gateway4.AsSlice()), net.IP(s.config().Guest4.AsSlice())
	if id := req.ServerIdentifier(); id != nil && !id.Equal(gw) && !id.IsUnspecified() {
		return // the client took another server's offer
	}
	kind := dhcpv4.MessageTypeAck
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		want := req.RequestedIPAddress()
		if want == nil || want.IsUnspecified() {
			want = req.ClientIPAddr
		}
		if !want.Equal(guest) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
	default: // RELEASE and DECLINE need no answer
		return
	}
	mods := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(gw), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(gw))}
	if kind != dhcpv4.MessageTypeNak {
		mods = append(mods,
			dhcpv4.WithNetmask(net.CIDRMask(s.config().Subnet4.Bits(), 32)),
			dhcpv4.WithRouter(gw),
			dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(s.config().MTU)}),
		)
		if req.MessageType() != dhcpv4.MessageTypeInform {
			mods = append(mods, dhcpv4.WithYourIP(guest), dhcpv4.WithLeaseTime(uint32(s.config().lease()/time.Second)))
		}
		var dns []net.IP
		for _, a := range s.config().DNS {
			if a.Is4() {
				dns = append(dns, a.AsSlice())
			}
		}
		if len(dns) > 0 {
			mods = append(mods, dhcpv4.WithDNS(dns...))
		}
		if s.config().Hostname != "" {
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(s.config().Hostname)))
		}
	}
	if name := encodeName(s.config().FQDN); name != nil && kind != dhcpv4.MessageTypeNak {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionFQDN, Value: dhcpv4.OptionGeneric{Data: append([]byte{fqdnEncoded, 255, 255}, name...)}}))
	}
	resp, err := dhcpv4.NewReplyFromRequest(req, mods...)
	if err != nil {
		s.stats.drop(DropDHCP)
		return
	}
	body := resp.ToBytes()
	if kind != dhcpv4.MessageTypeNak && len(s.config().SearchDomains) > 0 {
		resp.UpdateOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: s.config().SearchDomains}))
		if longer := resp.ToBytes(); len(longer) <= dhcpMaxMessage { // the only option of unlimited length: sent completely or not at all
			body = longer
		}
	}
	if header.IPv4MinimumSize+udpLen+len(body) > s.config().MTU {
		s.stats.drop(DropDHCP)
		return
	}
	// The frame goes to the client's link address. The IP destination is broadcast while the client may not have an address yet; a
	// client that renews its lease listens on its address only (RFC 2131 4.1).
	to := limitedBroadcast
	if a, ok := netip.AddrFromSlice(req.ClientIPAddr.To4()); ok && kind == dhcpv4.MessageTypeAck && s.config().Subnet4.Contains(a) {
		to = a
	}
	hdr := make([]byte, ethLen+header.IPv4MinimumSize+udpLen)
	copy(hdr[0:6], req.ClientHWAddr)
	s.ipv4Header(hdr[ethLen:], s.config().Gateway4, to, protoUDP, 0, 0, udpLen+len(body), 0)
	u := hdr[ethLen+header.IPv4MinimumSize:]
	binary.BigEndian.PutUint16(u[0:], dhcpServerPort)
	binary.BigEndian.PutUint16(u[2:], dhcpClientPort)
	binary.BigEndian.PutUint16(u[4:], uint16(udpLen+len(body)))
	sum := checksum.Checksum(u, pseudoSumAddr(s.config().Gateway4, to, protoUDP, udpLen+len(body)))
	binary.BigEndian.PutUint16(u[6:], udpChecksum(checksum.Checksum(body, sum)))
	_ = p.writeFrame(tap.Header{}, header.IPv4ProtocolNumber, hdr, body)
}
