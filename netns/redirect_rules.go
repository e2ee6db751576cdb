package netns

import (
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// redirectRules loads the table:
//
//	table inet rootlessnet {
//	    flags owner
//	    set stack4 { type ipv4_addr . ipv4_addr . inet_service . inet_service; flags dynamic,timeout }
//	    set nosocket4 { the same }
//	    chain out { type route hook output priority mangle
//	        # IPv4 or IPv6
//	        meta mark ACCEPTED meta l4proto tcp tcp flags & (rst|ack) == rst meta mark set 0 return
//	        oif != uplink return
//	        meta l4proto != tcp return
//	        tcp flags & (syn|ack) == syn delete @stack4 {…} return     # leaves by the link, where the supervisor judges it
//	        ip daddr . ip saddr . tcp dport . tcp sport @stack4 return  # a connection that the stack serves
//	        meta mark set REDIRECT
//	    }
//	    chain in { type filter hook prerouting priority mangle
//	        # each with: meta mark REDIRECT iif lo meta l4proto tcp meta nfproto ipv4
//	        tcp flags & (syn|ack) == syn tproxy ip to 192.0.0.8:1 accept
//	        tproxy ip to 192.0.0.8:2 accept                             # the connection's own socket, or no match
//	        ip daddr . ip saddr . tcp dport . tcp sport @nosocket4 tproxy ip to 192.0.0.8:1 accept
//	        update @nosocket4 {…} drop
//
//	        iif != uplink return
//	        meta l4proto != tcp return
//	        ip saddr . ip daddr . tcp sport . tcp dport @stack4 update @stack4 {…} return
//	        tcp flags & syn == syn update @stack4 {…} return
//	        tcp flags & syn == syn drop                                 # the set is full; the peer sends it again
//	    }
//	}
//
// and the same for IPv6. The sets stack4 and stack6 hold the 4-tuples of connections that the userspace stack serves on the
// link: a SYN or SYN/ACK that arrives by the link enters its connection there. So a connection stays on the path by which it
// was answered first, the supervisor may choose the path for each connection, and a 4-tuple that is used again is decided
// again.
//
// A reset without ACK flag is the kernel's answer to a segment for which it has no socket (RFC 9293 3.10.7.1), and with
// markAccepted that segment was sent by a socket of ours. If the segment was the SYN-ACK, the program has given up its connect.
// The request socket would take the reset without a trace (tcp_check_req, net/ipv4/tcp_minisocks.c), so these resets leave by
// the link: the supervisor notes them, and re-injects them.
//
// A redirected segment without a socket gets a reset from the listener, but not when it is the first such segment of its
// connection. While the kernel replaces a request socket by a full one, a lookup on another processor finds neither
// (inet_ehash_insert, net/ipv4/inet_hashtables.c), and a reset would end a connection that has only just begun: one in
// 40,000 measured. So the first is dropped and its 4-tuple noted in nosocket4; the sender sends it again.
//
// The table has an owner, so that no process inside can flush it: connection requests would be without an answer then. It lives
// as long as the descriptor that is returned or, with persist, as the namespace (see loadTable).
func redirectRules(uplink uint32, ipv6, persist bool) (*os.File, error) {
	return loadTable(redirectName, persist, func(b *tableBuilder) error { return b.redirect(uplink, ipv6) })
}

func (b *tableBuilder) redirect(uplink uint32, ipv6 bool) error {
	out := b.chain("out", nftables.ChainTypeRoute, nftables.ChainHookOutput, nftables.ChainPriorityMangle)
	in := b.chain("in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	families := ruleFamilies(ipv6)
	for i := range families {
		f := &families[i]
		for _, set := range []struct {
			set     **nftables.Set
			name    string
			timeout time.Duration
		}{{&f.stack, "stack", stackFlowTimeout}, {&f.noSocket, "nosocket", noSocketTimeout}} {
			*set.set = &nftables.Set{Table: b.table, Name: set.name + f.suffix, KeyType: nftables.MustConcatSetType(f.addrType, f.addrType, nftables.TypeInetService, nftables.TypeInetService),
				Concatenation: true, Dynamic: true, HasTimeout: true, Timeout: set.timeout, Size: maxFlows}
			if err := b.c.AddSet(*set.set, nil); err != nil {
				return err
			}
		}
	}
	b.rule(out, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markAccepted)), isTCP, isBareReset, setMark(0), ruleReturn)
	b.rule(out, metaIs(expr.MetaKeyOIF, expr.CmpOpNeq, number(uplink)), ruleReturn)
	b.rule(out, notTCP, ruleReturn)
	for _, f := range families {
		b.rule(out, tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), f.match(), f.flow(dstEnd, srcEnd), deleteFlow(f.stack), ruleReturn)
	}
	for _, f := range families {
		b.rule(out, f.match(), f.flow(dstEnd, srcEnd), isIn(f.stack), ruleReturn)
	}
	b.rule(out, setMark(markRedirect))

	for _, f := range families {
		redirected := slices.Concat(metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markRedirect)), metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(LoopbackIndex)), isTCP, f.match())
		accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
		b.rule(in, redirected, tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), f.tproxy(redirectPort), accept)
		b.rule(in, redirected, f.tproxy(unusedPort), accept)
		b.rule(in, redirected, f.flow(dstEnd, srcEnd), isIn(f.noSocket), f.tproxy(redirectPort), accept)
		b.rule(in, redirected, f.flow(dstEnd, srcEnd), updateFlow(f.noSocket, noSocketTimeout), ruleDrop)
	}
	b.rule(in, metaIs(expr.MetaKeyIIF, expr.CmpOpNeq, number(uplink)), ruleReturn)
	b.rule(in, notTCP, ruleReturn)
	for _, f := range families {
		b.rule(in, f.match(), f.flow(srcEnd, dstEnd), isIn(f.stack), updateFlow(f.stack, stackFlowTimeout), ruleReturn)
	}
	for _, f := range families {
		b.rule(in, tcpFlagsAre(tcpSYN, tcpSYN), f.match(), f.flow(srcEnd, dstEnd), updateFlow(f.stack, stackFlowTimeout), ruleReturn)
	}
	b.rule(in, tcpFlagsAre(tcpSYN, tcpSYN), ruleDrop)
	return nil
}

// StackFlowRefresh is the longest time that the supervisor may let pass without sending a segment on the link for each
// connection that the stack serves while a redirect exists: without one, the rules forget the connection and redirect it.
const StackFlowRefresh = 3 * time.Minute

const (
	// stackFlowTimeout is how long the rules remember a connection of the stack after its last segment on the link: some of
	// those sent every StackFlowRefresh may be lost. Connections are not removed from the set when they end, and a longer
	// timeout would let short ones fill it.
	stackFlowTimeout = 4 * StackFlowRefresh
	// noSocketTimeout is longer than the time after which a segment is sent again, which begins with 200 ms (TCP_RTO_MIN).
	noSocketTimeout = 3 * time.Second
	// maxFlows bounds the kernel's memory for each set, some 100 bytes a connection.
	maxFlows = 1 << 17
	// unusedPort has no listener, at addresses that no other program can bind.
	unusedPort = redirectPort + 1

	tcpSYN, tcpRST, tcpACK = 2, 4, 16 // flag bits (RFC 9293 3.1)
)
