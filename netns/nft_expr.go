package netns

import (
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ruleFamily has what differs between the rules for IPv4 and those for IPv6.
type ruleFamily struct {
	proto    byte
	suffix   string
	addrType nftables.SetDatatype
	addrSize uint32
	src, dst uint32 // offsets of the addresses in the IP header
	ttl      uint32 // offset of the time to live or hop limit
	listener netip.Addr
	stack    *nftables.Set // 4-tuples that the stack serves
	noSocket *nftables.Set // 4-tuples of which a segment found no socket
}

var (
	family4 = ruleFamily{proto: unix.NFPROTO_IPV4, suffix: "4", addrType: nftables.TypeIPAddr, addrSize: 4, src: 12, dst: 16, ttl: 8, listener: redirectAddr4}
	family6 = ruleFamily{proto: unix.NFPROTO_IPV6, suffix: "6", addrType: nftables.TypeIP6Addr, addrSize: 16, src: 8, dst: 24, ttl: 7, listener: redirectAddr6}
)

func ruleFamilies(ipv6 bool) []ruleFamily {
	if ipv6 {
		return []ruleFamily{family4, family6}
	}
	return []ruleFamily{family4}
}

func (f *ruleFamily) match() []expr.Any {
	return metaIs(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f.proto})
}

// end says which end of its connection a packet names as source or destination.
type end bool

const (
	srcEnd end = false
	dstEnd end = true
)

// flow loads the key of the sets into the registers from keyRegister on: remote address, guest address, remote port, guest
// port. The arguments say which end of the packet each of the two is.
func (f *ruleFamily) flow(remote, guest end) (exprs []expr.Any) {
	reg := uint32(keyRegister)
	for _, e := range []end{remote, guest} {
		offset := f.src
		if e == dstEnd {
			offset = f.dst
		}
		exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrSize})
		reg += f.addrSize / 4
	}
	for _, e := range []end{remote, guest} {
		offset := uint32(0)
		if e == dstEnd {
			offset = 2
		}
		exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
		reg++
	}
	return exprs
}

// keyRegister is the first of the 4-byte registers.
const keyRegister = unix.NFT_REG32_00

// isIn matches a packet whose flow, loaded before, is in the set.
func isIn(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: keyRegister, SetName: set.Name, SetID: set.ID}}
}

// updateFlow adds the flow to the set, or starts its timeout again. A rule ends there if the set is full.
func updateFlow(set *nftables.Set, timeout time.Duration) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: keyRegister, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout}}
}

// deleteFlow takes the flow out of the set.
func deleteFlow(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: keyRegister, SetName: set.Name, SetID: set.ID, Operation: nftDynsetDelete}}
}

// nftDynsetDelete is NFT_DYNSET_OP_DELETE (include/uapi/linux/netfilter/nf_tables.h), Linux 5.4; x/sys does not have it.
const nftDynsetDelete = 2

// tproxy delivers a segment to the socket of its connection or else to the listener on port; without either the rule ends
// there and the next one is tried.
func (f *ruleFamily) tproxy(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: f.listener.AsSlice()},
		&expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.TProxy{Family: f.proto, TableFamily: unix.NFPROTO_INET, RegAddr: unix.NFT_REG_1, RegPort: unix.NFT_REG_2},
	}
}

func number(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

func metaIs(key expr.MetaKey, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: value}}
}

// tcpFlagsAre compares the flags in mask.
func tcpFlagsAre(mask, flags byte) []expr.Any {
	const offset = 13
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{flags}},
	}
}

// isBareReset matches a reset without ACK flag: the answer to a segment that found no socket.
var isBareReset = tcpFlagsAre(tcpRST|tcpACK, tcpRST)

func setMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: number(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

var (
	isTransparent = []expr.Any{
		&expr.Socket{Key: expr.SocketKeyTransparent, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{1}},
	}
	isMasqueraded = []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: unix.NFT_REG_1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: number(ipsSNAT), Xor: number(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: number(0)},
	}
)

// isUnanswered matches a connection of which conntrack has not seen the whole handshake.
var isUnanswered = []expr.Any{
	&expr.Ct{Key: expr.CtKeySTATUS, Register: unix.NFT_REG_1},
	&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: number(ipsAssured), Xor: number(0)},
	&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: number(0)},
}

func ctIs(key expr.CtKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Ct{Key: key, Register: unix.NFT_REG_1}, &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: value}}
}

// ctMarkIs compares the conntrack mark, under ctMask, with ctRedirected and ctNoSocket.
func ctMarkIs(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: unix.NFT_REG_1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: number(ctMask), Xor: number(0)},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: number(ctRedirected)},
	}
}

func setCTMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: number(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

// ttlIsNot compares the time to live, or the hop limit.
func (f *ruleFamily) ttlIsNot(ttl byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: f.ttl, Len: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: []byte{ttl}},
	}
}
