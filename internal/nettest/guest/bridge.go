package guest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What an engine for containers makes in a namespace: a bridge, cables to other namespaces, and rules as netavark's.

// bridge: NAME PREFIX... makes one that has the addresses, and forwards.
func bridge(args []string) (string, error) {
	name := arg(args, 0, "br0")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return "", err
	}
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0); err != nil {
			return "", err
		}
	}
	return "made", configure(name, args[1:])
}

// cable: BRIDGE PID NAME leads from the bridge to an interface of that name in the namespace of a process.
func cable(args []string) (string, error) {
	pid, err := number(args, 1, 0)
	if err != nil {
		return "", err
	}
	br, err := netlink.LinkByName(arg(args, 0, "br0"))
	if err != nil {
		return "", err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("v%d", pid), br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: arg(args, 2, "eth0"), PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return "", err
	}
	return "made", netlink.LinkSetUp(veth)
}

// address: NAME PREFIX... GATEWAY... configures an interface, and lo.
func address(args []string) (string, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return "", err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return "", err
	}
	return "configured", configure(arg(args, 0, "eth0"), args[1:])
}

// unaddress: NAME PREFIX takes an address away.
func unaddress(args []string) (string, error) {
	link, err := netlink.LinkByName(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	addr, err := netlink.ParseAddr(arg(args, 1, ""))
	if err != nil {
		return "", err
	}
	return "removed", netlink.AddrDel(link, addr)
}

// unlink: NAME removes an interface.
func unlink(args []string) (string, error) {
	link, err := netlink.LinkByName(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	return "removed", netlink.LinkDel(link)
}

// join: BRIDGE NAME puts an interface on a bridge.
func join(args []string) (string, error) {
	br, err := netlink.LinkByName(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	link, err := netlink.LinkByName(arg(args, 1, ""))
	if err != nil {
		return "", err
	}
	return "joined", netlink.LinkSetMasterByIndex(link, br.Attrs().Index)
}

// believe: NAME ADDR [MAC] believes a link address for good, or learns it again.
func believe(args []string) (string, error) {
	link, err := netlink.LinkByName(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(arg(args, 1, "")), State: netlink.NUD_PERMANENT}
	if len(args) < 3 {
		return "forgotten", netlink.NeighDel(n)
	}
	if n.HardwareAddr, err = net.ParseMAC(args[2]); err != nil {
		return "", err
	}
	return "believed", netlink.NeighSet(n)
}

// configure adds prefixes as addresses, and default routes by what is an address.
func configure(name string, words []string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, w := range words {
		if gateway, err := netip.ParseAddr(w); err == nil {
			any := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
			if gateway.Is6() {
				any = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: any, Gw: gateway.AsSlice()}); err != nil {
				return fmt.Errorf("route by %v: %w", gateway, err)
			}
			continue
		}
		addr, err := netlink.ParseAddr(w)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", w, err)
		}
	}
	return nil
}

// masquerade: PREFIX... [-open | -drop PORT] loads rules as netavark's, in place of those that are there: what comes from the
// prefixes may leave, masqueraded; what goes to them must belong to a connection; everything else that is forwarded is dropped,
// unless -open says otherwise. With -drop, so is what goes to a port.
func masquerade(args []string) (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "engine"}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	policy := nftables.ChainPolicyDrop
	if slices.Contains(args, "-open") {
		policy = nftables.ChainPolicyAccept
	}
	forward := c.AddChain(&nftables.Chain{Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	post := c.AddChain(&nftables.Chain{Table: table, Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	add := func(chain *nftables.Chain, verdict expr.Any, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(all, verdict)})
	}
	accept, drop := &expr.Verdict{Kind: expr.VerdictAccept}, &expr.Verdict{Kind: expr.VerdictDrop}
	add(forward, drop, ctState(expr.CtStateBitINVALID))
	for i, a := range args {
		if a == "-drop" {
			port, err := number(args, i+1, 0)
			if err != nil {
				return "", err
			}
			add(forward, drop, []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(port))},
			})
			break
		}
	}
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			break
		}
		prefix, err := netip.ParsePrefix(a)
		if err != nil {
			return "", err
		}
		const src, dst = true, false
		add(forward, accept, within(prefix, dst, expr.CmpOpEq), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED))
		add(forward, accept, within(prefix, src, expr.CmpOpEq))
		add(post, &expr.Masq{}, within(prefix, src, expr.CmpOpEq), within(prefix, dst, expr.CmpOpNeq))
	}
	return "loaded", c.Flush()
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// within compares the source or the destination with a prefix.
func within(p netip.Prefix, src bool, op expr.CmpOp) []expr.Any {
	proto, size, offset := byte(unix.NFPROTO_IPV4), uint32(4), uint32(16)
	if p.Addr().Is6() {
		proto, size, offset = unix.NFPROTO_IPV6, 16, 24
	}
	if src {
		offset -= size
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), int(size)*8), Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}
