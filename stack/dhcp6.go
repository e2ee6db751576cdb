package stack

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

const (
	dhcp6ClientPort = 546
	dhcp6ServerPort = 547
)

// dhcp6Servers is the multicast address All_DHCP_Relay_Agents_and_Servers (RFC 8415 7.1).
var dhcp6Servers = netip.MustParseAddr("ff02::1:2")

// handleDHCP6 answers a DHCPv6 client (RFC 8415). As with DHCPv4 there is one address to assign and no state. An address that was
// assigned earlier and is no longer the guest's is sent with lifetimes of 0, upon which the client removes it.
func (s *Stack) handleDHCP6(d *Datagram) {
	c := s.config()
	if !c.DHCPv6 || !c.Guest6.IsValid() || !d.Src.Addr().IsLinkLocalUnicast() {
		s.stats.drop(DropDHCP)
		return
	}
	req, err := dhcpv6.MessageFromBytes(d.Payload)
	if err != nil {
		s.stats.drop(DropDHCP)
		return
	}
	own := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr(s.mac[:])}
	if id := req.Options.ServerID(); id != nil && !id.Equal(own) {
		return // the client took another server's offer
	}
	resp := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: req.TransactionID}
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		resp.MessageType = dhcpv6.MessageTypeAdvertise
		fallthrough
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		for _, ia := range req.Options.IANA() {
			resp.AddOption(s.grant6(c, ia))
		}
	case dhcpv6.MessageTypeConfirm:
		status := iana.StatusSuccess
		for _, ia := range req.Options.IANA() {
			for _, a := range ia.Options.Addresses() {
				if !a.IPv6Addr.Equal(c.Guest6.AsSlice()) {
					status = iana.StatusNotOnLink
				}
			}
		}
		resp.AddOption(&dhcpv6.OptStatusCode{StatusCode: status})
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		resp.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
	case dhcpv6.MessageTypeInformationRequest:
	default:
		s.stats.drop(DropDHCP)
		return
	}
	if id := req.Options.ClientID(); id != nil {
		resp.AddOption(dhcpv6.OptClientID(id))
	} else if req.MessageType != dhcpv6.MessageTypeInformationRequest { // the only message without a client identifier (RFC 8415 16.12)
		s.stats.drop(DropDHCP)
		return
	}
	resp.AddOption(dhcpv6.OptServerID(own))
	var dns []net.IP
	for _, a := range c.DNS {
		if a.Is6() {
			dns = append(dns, a.AsSlice())
		}
	}
	if len(dns) > 0 {
		resp.AddOption(dhcpv6.OptDNS(dns...))
	}
	if len(c.SearchDomains) > 0 {
		resp.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: c.SearchDomains}))
	}
	if c.FQDN != "" {
		resp.AddOption(&dhcpv6.OptFQDN{DomainName: &rfc1035label.Labels{Labels: []string{c.FQDN}}})
	}
	_ = s.WriteUDP(&Datagram{Flow: Flow{Src: netip.AddrPortFrom(s.router6(), dhcp6ServerPort), Dst: netip.AddrPortFrom(d.Src.Addr(), dhcp6ClientPort)},
		Payload: resp.ToBytes(), TTL: 1})
}

// grant6 answers one identity association.
func (s *Stack) grant6(c *Config, ia *dhcpv6.OptIANA) *dhcpv6.OptIANA {
	lease := c.lease()
	out := &dhcpv6.OptIANA{IaId: ia.IaId, T1: lease / 2, T2: lease * 4 / 5}
	out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: c.Guest6.AsSlice(), PreferredLifetime: lease, ValidLifetime: lease})
	for _, a := range ia.Options.Addresses() {
		if !a.IPv6Addr.Equal(c.Guest6.AsSlice()) && !a.IPv6Addr.IsUnspecified() {
			out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr})
		}
	}
	return out
}

// lease returns the lease time of the guest's address. Clients renew after half of it. An address of the host's may change at
// any time, and the guest learns the new one at the next renewal.
func (c *Config) lease() time.Duration {
	if c.HostAddresses {
		return dhcpHostLease
	}
	return dhcpLease
}
