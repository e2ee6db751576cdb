package userns

import (
	"errors"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a Diversion owns for traffic that the namespace forwards: that of containers on a bridge, or behind a tunnel, which
// leaves by the uplink masqueraded.
const (
	// markBeyond is that of sockets of ours that speak to somebody beyond the namespace. It leads nowhere: what they send
	// takes the route of its destination.
	markBeyond = 0x726e0005
	// markInward leads what containers send to lo, whatever its destination.
	markInward = 0x726e0009
	// sourcePref and inwardPref put the rules for it right after that of the other marks.
	sourcePref, inwardPref = divertPref + 1, divertPref + 2
	// ctCarried is the mark, of conntrack, of connections whose other end is a socket of ours.
	ctCarried = 0x726e0004
	// ctMissed is that of those which have just sent something for which there was no socket.
	ctMissed = 0x726e0006
	// ctMask is where these two are alike.
	ctMask = ^uint32(ctCarried ^ ctMissed)
	// forwardName is that of the nftables table.
	forwardName = divertName + "-forward"
	// ownTTL is what a segment of the namespace's own has in it (net.ipv4.ip_default_ttl): a hop less is somebody else's.
	ownTTL = 64
	// ipsSNAT is IPS_SRC_NAT (include/uapi/linux/netfilter/nf_conntrack_common.h).
	ipsSNAT = 1 << 4
	// dirOriginal and dirReply are IP_CT_DIR_ORIGINAL and IP_CT_DIR_REPLY (nf_conntrack_tuple_common.h).
	dirOriginal, dirReply = 0, 1
)

// forwardRules loads the table for what is forwarded:
//
//	table inet rootlessnet-forward {
//	    flags owner
//	    chain again { type filter hook prerouting priority raw
//	        # meta mark DIVERT iif lo, each family
//	        tcp flags & (syn|ack) == syn ip ttl != 64 notrack
//	    }
//	    chain in { type filter hook prerouting priority mangle
//	        iif lo return; iif uplink return; meta l4proto != tcp return
//	        ct mark & MASK != CARRIED return
//	        tcp flags & (syn|ack) == syn ct mark set 0 return   # another connection
//	        meta mark set INWARD                                # local, whatever its destination
//	    }
//	    chain astray { type filter hook forward priority raw
//	        meta mark INWARD drop
//	    }
//	    chain arrived { type filter hook input priority srcnat + 1
//	        meta mark != INWARD return; iif lo return; meta l4proto != tcp return
//	        socket transparent 1 meta mark set BEYOND return
//	        ct mark MISSED ct mark set 0 drop                   # the next goes by the link, which answers
//	        ct mark set MISSED drop
//	    }
//	    chain out { type filter hook output priority mangle
//	        meta l4proto != tcp return
//	        meta mark SPEAK  tcp flags & (syn|ack) == syn|ack ct direction reply ct status & snat != 0 ct mark set CARRIED
//	        meta mark BEYOND tcp flags & (syn|ack) == syn ct direction original ct mark set CARRIED
//	        ct mark & MASK == CARRIED meta mark set BEYOND
//	    }
//	    chain nat { type nat hook postrouting priority srcnat + 1 }
//	}
//
// A request is forwarded, filtered, and masqueraded as the rules of the namespace's owner have it, and leaves by the
// link with the namespace's address: those rules alone say who may leave, and the supervisor knows one source as ever.
// What it sends back to lo is the masqueraded request, so the listener's socket has the masqueraded ends. Conntrack knows that
// connection already: on the way out it gives the answer its true destination, and the kernel looks for a route again. On the
// way in the mark makes a segment local, and conntrack rewrites the source of what is local after the routing (the hook
// is input), which is in time for the lookup of the socket. So the whole connection is tracked, and translated by one
// entry of conntrack that lives as long as the connection, whatever becomes of the rules that began it.
//
// What has the mark and is forwarded all the same is a frame that a bridge passes on, with br_netfilter, because it is for a link
// address that the bridge had until a port left it. Conntrack would take its interface for another way out, and forget the
// connection (nf_nat_oif_changed). It is sent again when the sender has found the bridge's new address.
//
// Only the request on lo is not tracked: conntrack would see a second connection with ends that are taken already.
//
// The chain nat is empty. While there is one, the kernel goes on translating connections: without any, as in the moment
// between `flush ruleset` and the rules that follow it, it would stop.
//
// All of this makes the namespace track its connections, which costs the others a little. So it is loaded when there is
// something to forward, and not before.
func forwardRules(uplink uint32, ipv6, keep bool) (*os.File, error) {
	return loadTable(forwardName, keep, func(b *ruleBook) error {
		b.forward(uplink, ipv6)
		return nil
	})
}

func (b *ruleBook) forward(uplink uint32, ipv6 bool) {
	again := b.chain("again", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	in := b.chain("in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	astray := b.chain("astray", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRaw)
	afterNAT := nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 1)
	arrived := b.chain("arrived", nftables.ChainTypeFilter, nftables.ChainHookInput, afterNAT)
	out := b.chain("out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityMangle)
	b.chain("nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, afterNAT)

	families := []divertFamily{family4}
	if ipv6 {
		families = append(families, family6)
	}
	isLo := metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(LoopbackIndex))
	request, carried := tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), ctMarkIs(expr.CmpOpEq)

	for _, f := range families {
		b.rule(again, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markDivert)), isLo, isTCP, f.match(), request, f.ttlIsNot(ownTTL), []expr.Any{&expr.Notrack{}})
	}

	b.rule(in, isLo, ruleReturn)
	b.rule(in, metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(uplink)), ruleReturn)
	b.rule(in, notTCP, ruleReturn)
	b.rule(in, ctMarkIs(expr.CmpOpNeq), ruleReturn)
	b.rule(in, request, setCTMark(0), ruleReturn)
	b.rule(in, setMark(markInward))

	b.rule(astray, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markInward)), ruleDrop)

	b.rule(arrived, metaIs(expr.MetaKeyMARK, expr.CmpOpNeq, number(markInward)), ruleReturn)
	b.rule(arrived, isLo, ruleReturn)
	b.rule(arrived, notTCP, ruleReturn)
	b.rule(arrived, isTransparent, setMark(markBeyond), ruleReturn)
	b.rule(arrived, ctIs(expr.CtKeyMARK, number(ctMissed)), setCTMark(0), ruleDrop)
	b.rule(arrived, setCTMark(ctMissed), ruleDrop)

	b.rule(out, notTCP, ruleReturn)
	b.rule(out, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markSpeak)), tcpFlagsAre(tcpSYN|tcpACK, tcpSYN|tcpACK),
		ctIs(expr.CtKeyDIRECTION, []byte{dirReply}), isMasqueraded, setCTMark(ctCarried))
	b.rule(out, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markBeyond)), request, ctIs(expr.CtKeyDIRECTION, []byte{dirOriginal}), setCTMark(ctCarried))
	b.rule(out, carried, setMark(markBeyond))
}

// forwardRoutes makes what containers send local. Where the kernel looks for the way back to a source by the mark of the packet
// too (src_valid_mark, which wg-quick(8) sets), it asks as lo would: that must not find the table in which everything is
// local.
func forwardRoutes(ipv6 bool, u *undo) error {
	for _, f := range families(ipv6) {
		source, inward := netlink.NewRule(), netlink.NewRule()
		source.Family, source.Mark, source.IifName, source.Table, source.Priority = f, markInward, "lo", unix.RT_TABLE_MAIN, sourcePref
		inward.Family, inward.Mark, inward.Table, inward.Priority = f, markInward, divertTable, inwardPref
		for _, rule := range []*netlink.Rule{source, inward} {
			if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
			u.add(func() { _ = netlink.RuleDel(rule) })
		}
	}
	return nil
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

func ctIs(key expr.CtKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Ct{Key: key, Register: unix.NFT_REG_1}, &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: value}}
}

// ctMarkIs compares with ctCarried and ctMissed.
func ctMarkIs(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: unix.NFT_REG_1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: number(ctMask), Xor: number(0)},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: number(ctCarried)},
	}
}

func setCTMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: number(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

// ttlIsNot compares the time to live, or the hop limit.
func (f *divertFamily) ttlIsNot(ttl byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: f.ttl, Len: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: []byte{ttl}},
	}
}
