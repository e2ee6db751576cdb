package netns

import (
	"errors"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a redirect owns for traffic that the namespace forwards: that of containers on a bridge or behind a tunnel, which
// leaves by the uplink masqueraded (source NAT). Its rules join such a connection's masqueraded side with a socket of ours.
const (
	// markForwarded is on sockets of ours whose peer is a container behind the namespace. No policy rule matches it: what they
	// send takes the ordinary route to its destination.
	markForwarded = 0x726e0005
	// markDeliver is on segments of containers that belong to a redirected connection. A policy rule makes them local whatever
	// their destination.
	markDeliver = 0x726e0009
	// sourcePref and deliverPref are the priorities of the two policy rules for markDeliver, right after redirectPref.
	sourcePref, deliverPref = redirectPref + 1, redirectPref + 2
	// ctRedirected is the conntrack mark of forwarded connections that end at a socket of ours.
	ctRedirected = 0x726e0004
	// ctNoSocket replaces it while the last segment of the connection found no socket.
	ctNoSocket = 0x726e0006
	// ctMask compares the bits in which the two conntrack marks are the same.
	ctMask = ^uint32(ctRedirected ^ ctNoSocket)
	// forwardName is the name of the nftables table.
	forwardName = redirectName + "-forward"
	// ownTTL is the time to live of a segment that the namespace itself sends (the default of net.ipv4.ip_default_ttl): one
	// that it forwarded has less.
	ownTTL = 64
	// ipsSNAT is IPS_SRC_NAT (include/uapi/linux/netfilter/nf_conntrack_common.h).
	ipsSNAT = 1 << 4
	// ipsAssured is IPS_ASSURED, in the same file: for TCP, that the handshake is complete.
	ipsAssured = 1 << 2
	// dirOriginal and dirReply are IP_CT_DIR_ORIGINAL and IP_CT_DIR_REPLY (nf_conntrack_tuple_common.h).
	dirOriginal, dirReply = 0, 1
)

// forwardRules loads the table for forwarded traffic:
//
//	table inet rootlessnet-forward {
//	    flags owner
//	    chain untracked { type filter hook prerouting priority raw
//	        # meta mark REDIRECT iif lo, each family
//	        tcp flags & (syn|ack) == syn ip ttl != 64 notrack
//	    }
//	    chain in { type filter hook prerouting priority mangle
//	        iif lo return; iif uplink return; meta l4proto != tcp return
//	        ct mark & MASK != REDIRECTED return
//	        tcp flags & (syn|ack) == syn ct mark set 0 return   # the 4-tuple begins another connection
//	        tcp flags & (rst|ack) == rst ct status & assured == 0 return # the container has given up its connect
//	        meta mark set DELIVER                               # local, whatever its destination
//	    }
//	    chain bridged { type filter hook forward priority raw
//	        meta mark DELIVER drop
//	    }
//	    chain deliver { type filter hook input priority srcnat + 1
//	        meta mark != DELIVER return; iif lo return; meta l4proto != tcp return
//	        socket transparent 1 meta mark set FORWARDED return
//	        ct mark NOSOCKET ct mark set 0 drop                 # the next leaves by the link, where the stack answers
//	        ct mark set NOSOCKET drop
//	    }
//	    chain out { type filter hook output priority mangle
//	        meta l4proto != tcp return
//	        meta mark ACCEPTED tcp flags & (syn|ack) == syn|ack ct direction reply ct status & snat != 0 ct mark set REDIRECTED
//	        meta mark FORWARDED tcp flags & (syn|ack) == syn ct direction original ct mark set REDIRECTED
//	        ct mark & MASK == REDIRECTED meta mark set FORWARDED
//	    }
//	    chain nat { type nat hook postrouting priority srcnat + 1 }
//	}
//
// A container's SYN is forwarded, filtered and masqueraded by the rules of the namespace's owner, and leaves by the link with
// the namespace's address. So the owner's rules alone decide which traffic may leave, and the supervisor sees only the
// namespace's address. The SYN that the supervisor re-injects on lo is the masqueraded one, and the listener's socket has the
// masqueraded addresses. Conntrack has an entry for that connection already. For a segment of ours on the way out it restores
// the container's address as destination, and the kernel routes it again. For a container's segment on the way in, the mark
// makes it local, and conntrack rewrites the source of a local packet after routing (hook input), which is in time for the
// socket lookup. The whole connection is tracked and translated by one conntrack entry, which lives as long as the connection
// even if the rules that began it are removed.
//
// A segment with markDeliver in the hook forward is a frame that a bridge passes on with br_netfilter, addressed to a link
// address that the bridge had until one of its ports was removed. Conntrack would see that the outgoing interface has changed
// and delete the entry (nf_nat_oif_changed), so it is dropped; the container sends it again to the bridge's new address.
//
// The reset with which a container answers a SYN-ACK, when its program has given up the connect, is forwarded like the SYN, so
// that it leaves by the link: see redirectRules. The supervisor re-injects it.
//
// The re-injected SYN alone is untracked: conntrack would see a second connection with a 4-tuple that is in use.
//
// The chain nat is empty. The kernel translates connections only while some chain of type nat exists; this one keeps
// translation on between `flush ruleset` and new rules of the owner's.
//
// The table makes the namespace track all its connections, which costs each of them a little. It is loaded only when there is
// traffic to forward.
func forwardRules(uplink uint32, ipv6, persist bool) (*os.File, error) {
	return loadTable(forwardName, persist, func(b *tableBuilder) error {
		b.forward(uplink, ipv6)
		return nil
	})
}

func (b *tableBuilder) forward(uplink uint32, ipv6 bool) {
	untracked := b.chain("untracked", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	in := b.chain("in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	bridged := b.chain("bridged", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRaw)
	afterNAT := nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 1)
	deliver := b.chain("deliver", nftables.ChainTypeFilter, nftables.ChainHookInput, afterNAT)
	out := b.chain("out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityMangle)
	b.chain("nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, afterNAT)

	isLo := metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(LoopbackIndex))
	request, redirected := tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), ctMarkIs(expr.CmpOpEq)

	for _, f := range ruleFamilies(ipv6) {
		b.rule(untracked, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markRedirect)), isLo, isTCP, f.match(), request, f.ttlIsNot(ownTTL), []expr.Any{&expr.Notrack{}})
	}

	b.rule(in, isLo, ruleReturn)
	b.rule(in, metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(uplink)), ruleReturn)
	b.rule(in, notTCP, ruleReturn)
	b.rule(in, ctMarkIs(expr.CmpOpNeq), ruleReturn)
	b.rule(in, request, setCTMark(0), ruleReturn)
	b.rule(in, isBareReset, isUnanswered, ruleReturn)
	b.rule(in, setMark(markDeliver))

	b.rule(bridged, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markDeliver)), ruleDrop)

	b.rule(deliver, metaIs(expr.MetaKeyMARK, expr.CmpOpNeq, number(markDeliver)), ruleReturn)
	b.rule(deliver, isLo, ruleReturn)
	b.rule(deliver, notTCP, ruleReturn)
	b.rule(deliver, isTransparent, setMark(markForwarded), ruleReturn)
	b.rule(deliver, ctIs(expr.CtKeyMARK, number(ctNoSocket)), setCTMark(0), ruleDrop)
	b.rule(deliver, setCTMark(ctNoSocket), ruleDrop)

	b.rule(out, notTCP, ruleReturn)
	b.rule(out, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markAccepted)), tcpFlagsAre(tcpSYN|tcpACK, tcpSYN|tcpACK),
		ctIs(expr.CtKeyDIRECTION, []byte{dirReply}), isMasqueraded, setCTMark(ctRedirected))
	b.rule(out, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markForwarded)), request, ctIs(expr.CtKeyDIRECTION, []byte{dirOriginal}), setCTMark(ctRedirected))
	b.rule(out, redirected, setMark(markForwarded))
}

// forwardRoutes makes segments with markDeliver local by a policy rule. Where the kernel checks the source of a packet by a
// route lookup that includes the packet's mark (src_valid_mark, which wg-quick(8) sets), the lookup is as if lo sent the
// packet: a second rule, of a lower priority number, makes it use the main table, because in table 0x726e the source would be local.
func forwardRoutes(ipv6 bool, u *undo) error {
	for _, f := range families(ipv6) {
		source, deliver := netlink.NewRule(), netlink.NewRule()
		source.Family, source.Mark, source.IifName, source.Table, source.Priority = f, markDeliver, "lo", unix.RT_TABLE_MAIN, sourcePref
		deliver.Family, deliver.Mark, deliver.Table, deliver.Priority = f, markDeliver, redirectTable, deliverPref
		for _, rule := range []*netlink.Rule{source, deliver} {
			if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
			u.add(func() { _ = netlink.RuleDel(rule) })
		}
	}
	return nil
}
