package userns

import (
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// loadTable makes a table and loads what fill writes into it, whole or not at all. The table belongs to its connection (NFT_TABLE_F_OWNER): nobody
// inside can flush it with his own, and it goes when the last copy of the descriptor f is closed. Kernels before Linux
// 5.12 do not know owners. In a namespace that is ours (keep) the table stays until that ends, with nobody waiting: to remove
// it costs the one who closes the descriptor 10 ms (synchronize_rcu). The caller closes f.
func loadTable(name string, keep bool, fill func(b *ruleBook) error) (f *os.File, err error) {
	defer func() {
		if err != nil && f != nil {
			f.Close()
			f = nil
		}
	}()
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(nl *netlink.Conn) (err error) {
		if err = ownTable(nl, name, keep); err != nil {
			return fmt.Errorf("a table that nobody else can remove (Linux 5.12): %w", err)
		}
		f, err = dupConn(nl)
		return err
	}))
	if err != nil {
		return f, err
	}
	defer c.CloseLasting()
	if err := fill(&ruleBook{c: c, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: name}}); err != nil {
		return f, err
	}
	return f, c.Flush()
}

// ruleBook fills a table.
type ruleBook struct {
	c     *nftables.Conn
	table *nftables.Table
}

func (b *ruleBook) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Table: b.table, Name: name, Type: typ, Hooknum: hook, Priority: prio})
}

func (b *ruleBook) rule(chain *nftables.Chain, exprs ...[]expr.Any) {
	r := &nftables.Rule{Table: b.table, Chain: chain}
	for _, e := range exprs {
		r.Exprs = append(r.Exprs, e...)
	}
	b.c.AddRule(r)
}

// Parts of rules.
var (
	ruleReturn = []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	ruleDrop   = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	isTCP      = metaIs(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})
	notTCP     = metaIs(expr.MetaKeyL4PROTO, expr.CmpOpNeq, []byte{unix.IPPROTO_TCP})
)

// ownTable makes the table one that belongs to nl (NFT_TABLE_F_OWNER, include/uapi/linux/netfilter/nf_tables.h). The
// library does not know the flag. With keep it outlives nl (NFT_TABLE_F_PERSIST), if the kernel can (Linux 6.9).
func ownTable(nl *netlink.Conn, name string, keep bool) error {
	const nftTableOwner, nftTablePersist = 2, 4
	if keep && newTable(nl, name, nftTableOwner|nftTablePersist) == nil {
		return nil
	}
	return newTable(nl, name, nftTableOwner)
}

func newTable(nl *netlink.Conn, name string, flags uint32) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(name + "\x00")},
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
