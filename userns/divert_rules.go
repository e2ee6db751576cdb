package userns

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
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
// The table belongs to its connection (NFT_TABLE_F_OWNER): nobody inside can flush it with his own, which would
// leave requests without an answer, and it goes when the last copy of the descriptor, which is returned, is closed.
// Kernels before Linux 5.12 do not know owners, and do without the diversion. In a namespace that is ours (keep) the table
// stays until that ends, with nobody waiting: to remove it costs the one who closes the descriptor 10 ms (synchronize_rcu).
func divertRules(d *Diversion, uplink uint32, keep bool) (f *os.File, err error) {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: divertName}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(nl *netlink.Conn) (err error) {
		if err = ownTable(nl, keep); err != nil {
			return fmt.Errorf("a table that nobody else can remove (Linux 5.12): %w", err)
		}
		f, err = dupConn(nl)
		return err
	}))
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	prio := nftables.ChainPriorityMangle
	out := c.AddChain(&nftables.Chain{Table: table, Name: "out", Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput, Priority: prio})
	in := c.AddChain(&nftables.Chain{Table: table, Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: prio})
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
			*set.set = &nftables.Set{Table: table, Name: set.name + f.suffix, KeyType: nftables.MustConcatSetType(f.addrType, f.addrType, nftables.TypeInetService, nftables.TypeInetService),
				Concatenation: true, Dynamic: true, HasTimeout: true, Timeout: set.timeout, Size: setMost}
			if err := c.AddSet(*set.set, nil); err != nil {
				return nil, err
			}
		}
	}
	rule := func(chain *nftables.Chain, exprs ...[]expr.Any) {
		r := &nftables.Rule{Table: table, Chain: chain}
		for _, e := range exprs {
			r.Exprs = append(r.Exprs, e...)
		}
		c.AddRule(r)
	}
	ret := []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	isTCP := metaIs(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})
	notTCP := metaIs(expr.MetaKeyL4PROTO, expr.CmpOpNeq, []byte{unix.IPPROTO_TCP})

	rule(out, metaIs(expr.MetaKeyOIF, expr.CmpOpNeq, number(uplink)), ret)
	rule(out, notTCP, ret)
	for _, f := range families {
		rule(out, tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), f.match(), f.flow(dstOf, srcOf), forget(f.kept), ret)
	}
	for _, f := range families {
		rule(out, f.match(), f.flow(dstOf, srcOf), isIn(f.kept), ret)
	}
	rule(out, setMark(markDivert))

	for _, f := range families {
		diverted := slices.Concat(metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markDivert)), metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(LoopbackIndex)), isTCP, f.match())
		accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
		rule(in, diverted, tcpFlagsAre(tcpSYN|tcpACK, tcpSYN), f.tproxy(divertPort), accept)
		rule(in, diverted, f.tproxy(nobodyPort), accept)
		rule(in, diverted, f.flow(dstOf, srcOf), isIn(f.missed), f.tproxy(divertPort), accept)
		rule(in, diverted, f.flow(dstOf, srcOf), update(f.missed, missedTimeout), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	}
	rule(in, metaIs(expr.MetaKeyIIF, expr.CmpOpNeq, number(uplink)), ret)
	rule(in, notTCP, ret)
	for _, f := range families {
		rule(in, f.match(), f.flow(srcOf, dstOf), isIn(f.kept), update(f.kept, keptTimeout), ret)
	}
	for _, f := range families {
		rule(in, tcpFlagsAre(tcpSYN, tcpSYN), f.match(), f.flow(srcOf, dstOf), update(f.kept, keptTimeout), ret)
	}
	rule(in, tcpFlagsAre(tcpSYN, tcpSYN), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	if err := c.Flush(); err != nil {
		return nil, err
	}
	return f, nil
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
	listener netip.Addr
	kept     *nftables.Set
	missed   *nftables.Set
}

var (
	family4 = divertFamily{proto: unix.NFPROTO_IPV4, suffix: "4", addrType: nftables.TypeIPAddr, addrSize: 4, src: 12, dst: 16, listener: divertAddr4}
	family6 = divertFamily{proto: unix.NFPROTO_IPV6, suffix: "6", addrType: nftables.TypeIP6Addr, addrSize: 16, src: 8, dst: 24, listener: divertAddr6}
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

// ownTable makes the table one that belongs to nl (NFT_TABLE_F_OWNER, include/uapi/linux/netfilter/nf_tables.h). The
// library does not know the flag. With keep it outlives nl (NFT_TABLE_F_PERSIST), if the kernel can (Linux 6.9).
func ownTable(nl *netlink.Conn, keep bool) error {
	const nftTableOwner, nftTablePersist = 2, 4
	if keep && newTable(nl, nftTableOwner|nftTablePersist) == nil {
		return nil
	}
	return newTable(nl, nftTableOwner)
}

func newTable(nl *netlink.Conn, flags uint32) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(divertName + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(flags)},
	})
	if err != nil {
		return err
	}
	message := func(typ int, flags netlink.HeaderFlags, family byte, subsystem uint16, data []byte) netlink.Message {
		head := append([]byte{family, unix.NFNETLINK_V0}, binaryutil.BigEndian.PutUint16(subsystem)...)
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | flags}, Data: append(head, data...)}
	}
	if _, err := nl.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge|netlink.Create, unix.NFPROTO_INET, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
	}); err != nil {
		return err
	}
	_, err = nl.Receive()
	return err
}

// dupConn returns a descriptor of the same socket.
func dupConn(nl *netlink.Conn) (f *os.File, err error) {
	c, err := nl.SyscallConn()
	if err != nil {
		return nil, err
	}
	var derr error
	err = c.Control(func(fd uintptr) {
		var n int
		if n, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); derr == nil {
			f = os.NewFile(uintptr(n), "nftables")
		}
	})
	if err == nil {
		err = derr
	}
	return f, err
}
