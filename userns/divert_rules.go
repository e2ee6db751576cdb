package userns

import (
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// divertRules loads the table:
//
//	table inet rootlessnet {
//	    flags owner
//	    set kept4 { type ipv4_addr . ipv4_addr . inet_service . inet_service; flags dynamic,timeout }
//	    chain out { type route hook output priority mangle
//	        oif != uplink return
//	        meta l4proto != tcp return
//	        tcp flags & (syn|ack) == syn delete @kept4 {…} return   # leaves by the link, to be judged
//	        ip daddr . ip saddr . tcp dport . tcp sport @kept4 return # came, or was answered, by the link
//	        meta mark set DIVERT
//	    }
//	    chain in { type filter hook prerouting priority mangle
//	        # each with: meta mark DIVERT iif lo meta l4proto tcp meta nfproto ipv4
//	        tcp flags & (syn|ack) == syn tproxy ip to 192.0.0.8:1 accept
//	        tproxy ip to 192.0.0.8:2 accept                        # the socket of the connection, or none
//	        ip daddr . ip saddr . tcp dport . tcp sport @missed4 tproxy ip to 192.0.0.8:1 accept
//	        update @missed4 {…} drop
//
//	        iif != uplink return
//	        meta l4proto != tcp return
//	        ip saddr . ip daddr . tcp sport . tcp dport @kept4 update @kept4 {…} return
//	        tcp flags & syn == syn update @kept4 {…} return
//	        tcp flags & syn == syn drop                            # the set is full; it is sent again
//	    }
//	}
//
// and the same for IPv6. So a connection stays on the road its first answer came by, and the supervisor may choose for
// each; a 4-tuple that begins anew chooses anew. A segment without a socket is answered with a reset, by the listener, but
// not the first of its connection: while the kernel puts a socket in the place of a request, a lookup on another
// processor finds neither (inet_ehash_insert, net/ipv4/inet_hashtables.c), and a reset would end a connection that has
// only just begun: one in 40,000 here. It is sent again.
//
// The table has an owner: were it flushed, requests would be left without an answer. It goes with the descriptor, or with keep,
// as loadTable says.
func divertRules(d *Diversion, uplink uint32, keep bool) (*os.File, error) {
	return loadTable(divertName, keep, func(b *ruleBook) error { return b.divert(d, uplink) })
}

func (b *ruleBook) divert(d *Diversion, uplink uint32) error {
	out := b.chain("out", nftables.ChainTypeRoute, nftables.ChainHookOutput, nftables.ChainPriorityMangle)
	in := b.chain("in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	families := []divertFamily{family4}
	if d.IPv6 {
		families = append(families, family6)
	}
	for i := range families {
		f := &families[i]
		for _, set := range []struct {
			set     **nftables.Set
			name    string
			timeout time.Duration
		}{{&f.kept, "kept", keptTimeout}, {&f.missed, "missed", missedTimeout}} {
			*set.set = &nftables.Set{Table: b.table, Name: set.name + f.suffix, KeyType: nftables.MustConcatSetType(f.addrType, f.addrType, nftables.TypeInetService, nftables.TypeInetService),
				Concatenation: true, Dynamic: true, HasTimeout: true, Timeout: set.timeout, Size: setMost}
			if err := b.c.AddSet(*set.set, nil); err != nil {
				return err
			}
		}
	}
	b.rule(out, metaIs(expr.MetaKeyOIF, expr.CmpOpNeq, number(uplink)), ruleReturn)
	b.rule(out, notTCP, ruleReturn)
	for _, f := range families {
		b.rule(out, tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), f.match(), f.flow(dstOf, srcOf), forget(f.kept), ruleReturn)
	}
	for _, f := range families {
		b.rule(out, f.match(), f.flow(dstOf, srcOf), isIn(f.kept), ruleReturn)
	}
	b.rule(out, setMark(markDivert))

	for _, f := range families {
		diverted := slices.Concat(metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markDivert)), metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(LoopbackIndex)), isTCP, f.match())
		accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
		b.rule(in, diverted, tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), f.tproxy(divertPort), accept)
		b.rule(in, diverted, f.tproxy(nobodyPort), accept)
		b.rule(in, diverted, f.flow(dstOf, srcOf), isIn(f.missed), f.tproxy(divertPort), accept)
		b.rule(in, diverted, f.flow(dstOf, srcOf), update(f.missed, missedTimeout), ruleDrop)
	}
	b.rule(in, metaIs(expr.MetaKeyIIF, expr.CmpOpNeq, number(uplink)), ruleReturn)
	b.rule(in, notTCP, ruleReturn)
	for _, f := range families {
		b.rule(in, f.match(), f.flow(srcOf, dstOf), isIn(f.kept), update(f.kept, keptTimeout), ruleReturn)
	}
	for _, f := range families {
		b.rule(in, tcpFlagsAre(tcpSYN, tcpSYN), f.match(), f.flow(srcOf, dstOf), update(f.kept, keptTimeout), ruleReturn)
	}
	b.rule(in, tcpFlagsAre(tcpSYN, tcpSYN), ruleDrop)
	return nil
}

// KeptPace is how often at least something must be sent on the link for each of its connections while a Diversion stands.
const KeptPace = 3 * time.Minute

const (
	// keptTimeout is how long the link may be silent about a connection that was given to it: the supervisor lets no more
	// than KeptPace pass, and a few may be lost. They are not removed at their end, and short ones should not fill the set.
	keptTimeout = 4 * KeptPace
	// missedTimeout is more than the time until a segment is sent again, which begins with 200 ms.
	missedTimeout = 3 * time.Second
	// setMost bounds the memory of each set in the kernel, some 100 bytes a flow.
	setMost = 1 << 17
	// nobodyPort is one on which nobody listens, at an address that nobody can have.
	nobodyPort = divertPort + 1

	tcpSYN, tcpACK = 2, 16 // bits of the flags (RFC 9293 3.1)
)

// divertFamily is what differs between IPv4 and IPv6.
type divertFamily struct {
	proto    byte
	suffix   string
	addrType nftables.SetDatatype
	addrSize uint32
	src, dst uint32 // offsets of the addresses in the header
	ttl      uint32 // offset of the time to live
	listener netip.Addr
	kept     *nftables.Set
	missed   *nftables.Set
}

var (
	family4 = divertFamily{proto: unix.NFPROTO_IPV4, suffix: "4", addrType: nftables.TypeIPAddr, addrSize: 4, src: 12, dst: 16, ttl: 8, listener: divertAddr4}
	family6 = divertFamily{proto: unix.NFPROTO_IPV6, suffix: "6", addrType: nftables.TypeIP6Addr, addrSize: 16, src: 8, dst: 24, ttl: 7, listener: divertAddr6}
)

func (f *divertFamily) match() []expr.Any {
	return metaIs(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f.proto})
}

// end is one end of a connection in a packet.
type end bool

const (
	srcOf end = false
	dstOf end = true
)

// flow loads remote and guest address, remote and guest port, from register keyRegister on.
func (f *divertFamily) flow(remote, guest end) (exprs []expr.Any) {
	reg := uint32(keyRegister)
	for _, e := range []end{remote, guest} {
		offset := f.src
		if e == dstOf {
			offset = f.dst
		}
		exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrSize})
		reg += f.addrSize / 4
	}
	for _, e := range []end{remote, guest} {
		offset := uint32(0)
		if e == dstOf {
			offset = 2
		}
		exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
		reg++
	}
	return exprs
}

// keyRegister is the first of the registers of 4 bytes.
const keyRegister = unix.NFT_REG32_00

// isIn matches a flow that is in the set.
func isIn(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: keyRegister, SetName: set.Name, SetID: set.ID}}
}

// update adds the flow to the set, or makes it young again.
func update(set *nftables.Set, timeout time.Duration) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: keyRegister, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout}}
}

// forget takes the flow out of the set.
func forget(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: keyRegister, SetName: set.Name, SetID: set.ID, Operation: nftDynsetDelete}}
}

// nftDynsetDelete is NFT_DYNSET_OP_DELETE (include/uapi/linux/netfilter/nf_tables.h), Linux 5.4; x/sys does not know it.
const nftDynsetDelete = 2

// tproxy gives a segment to the socket of its connection, or to the listener on port.
func (f *divertFamily) tproxy(port uint16) []expr.Any {
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

// tcpFlagsAre compares those of the mask.
func tcpFlagsAre(mask, flags byte) []expr.Any {
	const offset = 13
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{flags}},
	}
}

func setMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: number(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}
