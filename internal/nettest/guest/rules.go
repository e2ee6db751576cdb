package guest

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These operations change the rules of nf_tables and of policy routing in the command's own namespace.

// FlushRules is "nft flush ruleset".
type FlushRules struct{}

func (FlushRules) run() (None, error) {
	c, err := nftables.New()
	if err != nil {
		return None{}, err
	}
	c.FlushRuleset()
	return None{}, c.Flush()
}

// CountTables counts the tables of nf_tables.
type CountTables struct{}

func (CountTables) run() (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	list, err := c.ListTables()
	return len(list), err
}

// LoadFirewall loads an input chain that drops everything but ICMP, what belongs to a connection, with Loopback what comes
// by lo, and TCP connections by eth0 to the ports.
type LoadFirewall struct {
	Loopback bool
	Ports    []uint16
}

func (op LoadFirewall) run() (None, error) {
	c, err := nftables.New()
	if err != nil {
		return None{}, err
	}
	drop := nftables.ChainPolicyDrop
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "firewall"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	accept := func(e ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(e, &expr.Verdict{Kind: expr.VerdictAccept})})
	}
	accept(ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)...)
	for _, proto := range []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		accept(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}})
	}
	if op.Loopback {
		accept(arrivesBy("lo")...)
	}
	for _, port := range op.Ports {
		accept(append(arrivesBy("eth0"), tcpTo(port)...)...)
	}
	return None{}, c.Flush()
}

// arrivesBy compares the name of the interface that a packet arrived by.
func arrivesBy(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(name + "\x00")}}
}

// MarkOutput marks all that is sent, in a route chain.
type MarkOutput struct{ Mark uint32 }

func (op MarkOutput) run() (None, error) {
	c, err := nftables.New()
	if err != nil {
		return None{}, err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "marks"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "output", Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityMangle})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(op.Mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	return None{}, c.Flush()
}

// AddPolicyRoute adds a rule that routes what has the mark, 0 for everything, by a table of its own, for both families.
type AddPolicyRoute struct {
	Priority    int
	Mark        uint32
	Unreachable bool // the table holds an unreachable route instead of a copy of the main table's default routes
}

func (op AddPolicyRoute) run() (None, error) {
	table := 1000 + op.Priority
	for family, any := range map[int]netip.Addr{netlink.FAMILY_V4: netip.IPv4Unspecified(), netlink.FAMILY_V6: netip.IPv6Unspecified()} {
		everywhere := ipNet(netip.PrefixFrom(any, 0))
		route := netlink.Route{Family: family, Dst: everywhere, Table: table, Type: unix.RTN_UNREACHABLE}
		if !op.Unreachable {
			list, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return None{}, err
			}
			found := false
			for _, r := range list {
				if r.Gw != nil {
					route, found = netlink.Route{Family: family, Dst: everywhere, Table: table, Gw: r.Gw, LinkIndex: r.LinkIndex}, true
				}
			}
			if !found {
				continue
			}
		}
		if err := netlink.RouteAdd(&route); err != nil {
			return None{}, fmt.Errorf("route %v: %w", route, err)
		}
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Priority, rule.Mark = family, table, op.Priority, op.Mark
		if err := netlink.RuleAdd(rule); err != nil {
			return None{}, fmt.Errorf("rule %v: %w", rule, err)
		}
	}
	return None{}, nil
}
