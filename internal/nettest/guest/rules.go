package guest

import (
	"fmt"
	"net"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a command does to its own namespace: rules of nf_tables and of policy routing.

// nftFlush is "nft flush ruleset".
func nftFlush([]string) (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	c.FlushRuleset()
	return "flushed", c.Flush()
}

// nftTables prints how many tables there are.
func nftTables([]string) (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	list, err := c.ListTables()
	return fmt.Sprint(len(list)), err
}

// nftInput: [lo] [PORT...]. Is an input chain that drops all but what belongs to a connection, with "lo" what comes by
// lo, and connections to the ports.
func nftInput(args []string) (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	drop := nftables.ChainPolicyDrop
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "firewall"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	accept := func(e ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(e, &expr.Verdict{Kind: expr.VerdictAccept})})
	}
	accept( // ct state established,related
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
	for _, proto := range []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		accept(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}})
	}
	for _, a := range args {
		if a == "lo" {
			accept(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("lo\x00")})
			continue
		}
		port, err := strconv.ParseUint(a, 10, 16)
		if err != nil {
			return "", err
		}
		accept(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("eth0\x00")},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(port))})
	}
	return "loaded", c.Flush()
}

// nftMark: MARK. Marks all that is sent, in a route chain.
func nftMark(args []string) (string, error) {
	mark, err := strconv.ParseUint(arg(args, 0, "1"), 0, 32)
	if err != nil {
		return "", err
	}
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "marks"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "output", Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityMangle})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(mark))},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	return "loaded", c.Flush()
}

// policyRoute: PREF MARK TYPE. Leads what has the mark (0 for all) to a table of its own: "copy", the default routes of the main
// table, or "unreachable".
func policyRoute(args []string) (string, error) {
	pref, err := number(args, 0, 10)
	if err != nil {
		return "", err
	}
	mark, err := number(args, 1, 0)
	if err != nil {
		return "", err
	}
	table := 1000 + pref
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		any := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if f == netlink.FAMILY_V6 {
			any = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		route := netlink.Route{Family: f, Dst: any, Table: table, Type: unix.RTN_UNREACHABLE}
		if arg(args, 2, "copy") == "copy" {
			list, err := netlink.RouteListFiltered(f, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return "", err
			}
			found := false
			for _, r := range list {
				if r.Gw != nil {
					route, found = netlink.Route{Family: f, Dst: any, Table: table, Gw: r.Gw, LinkIndex: r.LinkIndex}, true
				}
			}
			if !found {
				continue
			}
		}
		if err := netlink.RouteAdd(&route); err != nil {
			return "", fmt.Errorf("route %v: %w", route, err)
		}
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Priority, rule.Mark = f, table, pref, uint32(mark)
		if err := netlink.RuleAdd(rule); err != nil {
			return "", fmt.Errorf("rule %v: %w", rule, err)
		}
	}
	return "added", nil
}

// rawLo: MARK DST PORT [COUNT]. Sends SYNs straight to lo, with a mark, from our own address, as frames without addresses.
func rawLo(args []string) (string, error) {
	mark, err := strconv.ParseUint(arg(args, 0, "0"), 0, 32)
	if err != nil {
		return "", err
	}
	dst, port, err := target(args[1:])
	if err != nil {
		return "", err
	}
	count, err := number(args, 3, 1)
	if err != nil {
		return "", err
	}
	w, err := openWire()
	if err != nil {
		return "", err
	}
	defer w.close()
	if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return "", err
	}
	w.to.Ifindex = 1
	w.mac, w.gw = make(net.HardwareAddr, 6), make(net.HardwareAddr, 6)
	const firstPort = 2048
	for i := range count {
		if err := w.send(w.ip(dst, protoTCP, tcpSegment(uint16(firstPort+i), port, tcpSYN, 0), 16)); err != nil {
			return "", err
		}
	}
	return fmt.Sprint(count), nil
}
