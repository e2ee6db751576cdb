package netns

import (
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// loadTable makes a table of family inet and loads what fill adds to it, whole or not at all. The table belongs to the netlink
// socket f (NFT_TABLE_F_OWNER, Linux 5.12): no other process can change or flush it, and the kernel removes it when the last
// copy of f is closed. Closing takes 10 ms then (synchronize_rcu). With persist, for a namespace that ends with this process,
// the table stays until the namespace ends, which no process waits for. The caller closes f.
func loadTable(name string, persist bool, fill func(b *tableBuilder) error) (f *os.File, err error) {
	defer func() {
		if err != nil && f != nil {
			f.Close()
			f = nil
		}
	}()
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(nl *netlink.Conn) (err error) {
		if err = ownTable(nl, name, persist); err != nil {
			return fmt.Errorf("a table with an owner (Linux 5.12): %w", err)
		}
		n, err := dupFD(nl)
		if err == nil {
			f = os.NewFile(uintptr(n), "nftables")
		}
		return err
	}))
	if err != nil {
		return f, err
	}
	defer c.CloseLasting()
	if err := fill(&tableBuilder{c: c, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: name}}); err != nil {
		return f, err
	}
	return f, c.Flush()
}

// tableBuilder adds chains and rules to a table.
type tableBuilder struct {
	c     *nftables.Conn
	table *nftables.Table
}

func (b *tableBuilder) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Table: b.table, Name: name, Type: typ, Hooknum: hook, Priority: prio})
}

func (b *tableBuilder) rule(chain *nftables.Chain, exprs ...[]expr.Any) {
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

// ownTable makes a table that belongs to nl (NFT_TABLE_F_OWNER, include/uapi/linux/netfilter/nf_tables.h), a flag that the
// nftables library cannot set. With persist it outlives nl (NFT_TABLE_F_PERSIST) where the kernel can do that (Linux 6.9).
func ownTable(nl *netlink.Conn, name string, persist bool) error {
	const nftTableOwner, nftTablePersist = 2, 4
	if persist && newTable(nl, name, nftTableOwner|nftTablePersist) == nil {
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
