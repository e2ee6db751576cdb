package dns

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	mdns "github.com/miekg/dns"
)

// names is the immutable table of local names. Its keys are names in wire format and lower case, in which each name has one
// representation.
type names struct {
	addrs map[string][]netip.Addr
	ptrs  map[string][]string // from names under in-addr.arpa and ip6.arpa to names in wire format
}

var localhostAddrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

const localhostLabel = "\x09localhost\x00"

func newNames(in map[string][]netip.Addr) (*names, error) {
	n := &names{addrs: map[string][]netip.Addr{}, ptrs: map[string][]string{}}
	for name, addrs := range in {
		wire, err := wireName(name)
		if err != nil {
			return nil, err
		}
		// An empty list is stored too: the name is local and has no address.
		list := n.addrs[wire]
		for _, a := range addrs {
			if !a.IsValid() {
				return nil, fmt.Errorf("name %q: invalid address", name)
			}
			list = append(list, a.Unmap().WithZone(""))
		}
		n.addrs[wire] = list
	}
	for wire, addrs := range n.addrs {
		for _, a := range addrs {
			if err := n.addPTR(a, wire); err != nil {
				return nil, err
			}
		}
	}
	for _, a := range localhostAddrs {
		if err := n.addPTR(a, localhostLabel); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *names) addPTR(a netip.Addr, wire string) error {
	arpa, err := mdns.ReverseAddr(a.String())
	if err != nil {
		return err
	}
	key, err := wireName(arpa)
	if err != nil {
		return err
	}
	n.ptrs[key] = append(n.ptrs[key], wire)
	return nil
}

// wireName returns the wire format of a name, in lower case. A trailing dot is optional.
func wireName(s string) (string, error) {
	var buf [256]byte
	end, err := mdns.PackDomainName(mdns.Fqdn(s), buf[:], 0, nil, false)
	if err != nil || end < 2 {
		return "", fmt.Errorf("invalid name %q", s)
	}
	return string(foldName(buf[:end])), nil
}

// answer returns the answer to q if its name is local.
func (n *names) answer(q *query) (msg []byte, local bool) {
	key := string(foldName(q.name()))
	addrs, isName := n.addrs[key]
	ptrs, isPtr := n.ptrs[key]
	if !isName && (key == localhostLabel || isUnder(key, localhostLabel)) { // RFC 6761, 6.3
		addrs, isName = localhostAddrs, true
	}
	if !isName && !isPtr {
		return nil, false
	}
	if q.version != 0 { // RFC 6891, 6.1.3
		return q.errorAnswer(mdns.RcodeBadVers), true
	}
	msg = q.header(bitAA, mdns.RcodeSuccess)
	if q.qclass == mdns.ClassINET || q.qclass == mdns.ClassANY {
		for _, a := range addrs {
			t := mdns.TypeAAAA
			if a.Is4() {
				t = mdns.TypeA
			}
			if q.qtype == t || q.qtype == mdns.TypeANY {
				msg = addRecord(msg, 6, t, a.AsSlice())
			}
		}
		for _, p := range ptrs {
			if q.qtype == mdns.TypePTR || q.qtype == mdns.TypeANY {
				msg = addRecord(msg, 6, mdns.TypePTR, []byte(p))
			}
		}
	}
	if binary.BigEndian.Uint16(msg[6:]) == 0 {
		// A NODATA answer has an SOA record in the authority section, with the time for which it may be cached (RFC 2308, 2.2).
		soa := []byte{0, 0} // mname and rname are the root, as no server is authoritative
		for _, v := range [...]uint32{1, localTTL, localTTL, localTTL, localTTL} {
			soa = binary.BigEndian.AppendUint32(soa, v)
		}
		msg = addRecord(msg, 8, mdns.TypeSOA, soa)
	}
	return q.addOPT(msg, mdns.RcodeSuccess), true
}

// isUnder reports whether name equals zone or is a subdomain of it; both are in wire format.
func isUnder(name, zone string) bool {
	for len(name) > len(zone) {
		name = name[1+int(name[0]):]
	}
	return name == zone
}

// addRecord appends a record for the question's name and increments the record count at offset at of the header.
func addRecord(msg []byte, at int, rrtype uint16, rdata []byte) []byte {
	addCount(msg, at, 1)
	msg = append(msg, 0xc0, minMessage)
	msg = binary.BigEndian.AppendUint16(msg, rrtype)
	msg = binary.BigEndian.AppendUint16(msg, mdns.ClassINET)
	msg = binary.BigEndian.AppendUint32(msg, localTTL)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(rdata)))
	return append(msg, rdata...)
}
