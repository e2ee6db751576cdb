package dns

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	mdns "github.com/miekg/dns"
)

// names is the table of what we answer ourselves. It never changes. Keys are wire-form names in lower case, so that no
// escaping can make two of one.
type names struct {
	addrs map[string][]netip.Addr
	ptrs  map[string][]string // of the arpa name, the wire-form names
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
		// An empty list is kept: the name is ours, and has no address.
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

// wireName returns the wire form of a name, in lower case; the trailing dot may be there or not.
func wireName(s string) (string, error) {
	var buf [256]byte
	end, err := mdns.PackDomainName(mdns.Fqdn(s), buf[:], 0, nil, false)
	if err != nil || end < 2 {
		return "", fmt.Errorf("invalid name %q", s)
	}
	return string(foldName(buf[:end])), nil
}

// answer returns the answer to q when its name is ours.
func (n *names) answer(q *query) (msg []byte, ours bool) {
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
		// NODATA is an SOA in the authority section (RFC 2308, 2.2), which also says for how long.
		soa := []byte{0, 0} // mname and rname are the root: there is no server behind this
		for _, v := range [...]uint32{1, localTTL, localTTL, localTTL, localTTL} {
			soa = binary.BigEndian.AppendUint32(soa, v)
		}
		msg = addRecord(msg, 8, mdns.TypeSOA, soa)
	}
	return q.addOPT(msg, mdns.RcodeSuccess), true
}

// isUnder reports whether the wire-form name has zone as its last labels, at a label's border.
func isUnder(name, zone string) bool {
	for len(name) > len(zone) {
		name = name[1+int(name[0]):]
	}
	return name == zone
}

// addRecord appends a record owned by the question's name and counts it at offset at of the header.
func addRecord(msg []byte, at int, rrtype uint16, rdata []byte) []byte {
	addCount(msg, at, 1)
	msg = append(msg, 0xc0, minMessage)
	msg = binary.BigEndian.AppendUint16(msg, rrtype)
	msg = binary.BigEndian.AppendUint16(msg, mdns.ClassINET)
	msg = binary.BigEndian.AppendUint32(msg, localTTL)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(rdata)))
	return append(msg, rdata...)
}
