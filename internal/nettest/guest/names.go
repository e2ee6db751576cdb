package guest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/miekg/dns"
)

// QueryDNS sends a query to a DNS server.
type QueryDNS struct {
	Server  netip.Addr
	Name    string
	Type    uint16 // such as dns.TypeA
	Network string // "tcp"; "" for UDP
}

// DNSAnswer is what the server answered.
type DNSAnswer struct {
	Outcome Outcome
	Rcode   string   // such as "NOERROR"
	Data    []string // of each record of the answer section
}

func (a DNSAnswer) String() string {
	return strings.Join(append([]string{a.Outcome.String(), a.Rcode}, a.Data...), " ")
}

func (op QueryDNS) run() (DNSAnswer, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(op.Name), op.Type)
	c := dns.Client{Net: op.Network, Timeout: patience}
	in, _, err := c.Exchange(m, net.JoinHostPort(op.Server.String(), "53"))
	if err != nil {
		return DNSAnswer{Outcome: OutcomeOf(err)}, nil
	}
	answer := DNSAnswer{Rcode: dns.RcodeToString[in.Rcode]}
	for _, rr := range in.Answer {
		answer.Data = append(answer.Data, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return answer, nil
}

// RequestLease requests a DHCP lease on an interface.
type RequestLease struct{ Interface string }

// Lease is what the DHCP server answered.
type Lease struct {
	Outcome     Outcome
	Address     netip.Prefix
	Router, DNS netip.Addr
}

func (op RequestLease) run() (Lease, error) {
	c, err := nclient4.New(op.Interface, nclient4.WithTimeout(patience))
	if err != nil {
		return Lease{}, err
	}
	defer c.Close()
	lease, err := c.Request(context.Background())
	if err != nil {
		return Lease{Outcome: OutcomeOf(err)}, nil
	}
	addr, ok := netip.AddrFromSlice(lease.ACK.YourIPAddr)
	if !ok {
		return Lease{}, fmt.Errorf("a lease of %v", lease.ACK.YourIPAddr)
	}
	bits, _ := lease.ACK.SubnetMask().Size()
	return Lease{OK, netip.PrefixFrom(addr.Unmap(), bits), first(lease.ACK.Router()), first(lease.ACK.DNS())}, nil
}

// first is the first address of a list; the zero Addr when there is none.
func first(list []net.IP) netip.Addr {
	if len(list) == 0 {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(list[0])
	return addr.Unmap()
}
