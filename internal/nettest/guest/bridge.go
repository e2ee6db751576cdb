package guest

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These operations make in a namespace what a container engine makes: a bridge, veth pairs to other namespaces, and rules
// as netavark's.

// AddBridge makes a bridge that has the addresses, and enables forwarding.
type AddBridge struct {
	Name     string
	Prefixes []netip.Prefix
}

func (op AddBridge) run() (None, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = op.Name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return None{}, err
	}
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0); err != nil {
			return None{}, err
		}
	}
	return Configure{Interface: op.Name, Prefixes: op.Prefixes}.run()
}

// AddVeth makes a veth pair between a bridge and an interface called Name in the namespace of the process PID. The result
// is the name of the bridge's end.
type AddVeth struct {
	Bridge string
	PID    int
	Name   string
}

func (op AddVeth) run() (bridgeEnd string, err error) {
	br, err := netlink.LinkByName(op.Bridge)
	if err != nil {
		return "", err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("v%d", op.PID), br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: op.Name, PeerNamespace: netlink.NsPid(op.PID)}
	if err := netlink.LinkAdd(veth); err != nil {
		return "", err
	}
	return attrs.Name, netlink.LinkSetUp(veth)
}

// JoinBridge attaches an interface to a bridge.
type JoinBridge struct{ Bridge, Interface string }

func (op JoinBridge) run() (None, error) {
	br, err := netlink.LinkByName(op.Bridge)
	if err != nil {
		return None{}, err
	}
	link, err := netlink.LinkByName(op.Interface)
	if err != nil {
		return None{}, err
	}
	return None{}, netlink.LinkSetMasterByIndex(link, br.Attrs().Index)
}

// Configure brings an interface and lo up, and adds addresses and default routes.
type Configure struct {
	Interface string
	Prefixes  []netip.Prefix
	Gateways  []netip.Addr
}

func (op Configure) run() (None, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return None{}, err
	}
	link, err := netlink.LinkByName(op.Interface)
	if err != nil {
		return None{}, err
	}
	for _, l := range []netlink.Link{lo, link} {
		if err := netlink.LinkSetUp(l); err != nil {
			return None{}, err
		}
	}
	for _, p := range op.Prefixes {
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return None{}, fmt.Errorf("address %v: %w", p, err)
		}
	}
	for _, gateway := range op.Gateways {
		everywhere := ipNet(netip.PrefixFrom(unspecified(gateway), 0))
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Gw: gateway.AsSlice()}); err != nil {
			return None{}, fmt.Errorf("route by %v: %w", gateway, err)
		}
	}
	return None{}, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// unspecified is 0.0.0.0 or ::, of the family of a.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// RemoveAddress removes an address from an interface.
type RemoveAddress struct {
	Interface string
	Prefix    netip.Prefix
}

func (op RemoveAddress) run() (None, error) {
	link, err := netlink.LinkByName(op.Interface)
	if err != nil {
		return None{}, err
	}
	return None{}, netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(op.Prefix)})
}

// RemoveLink removes an interface.
type RemoveLink struct{ Interface string }

func (op RemoveLink) run() (None, error) {
	link, err := netlink.LinkByName(op.Interface)
	if err != nil {
		return None{}, err
	}
	return None{}, netlink.LinkDel(link)
}

// SetNeighbour makes a permanent entry of the neighbour table: packets for Addr go to the link address MAC.
type SetNeighbour struct {
	Interface string
	Addr      netip.Addr
	MAC       string
}

func (op SetNeighbour) run() (None, error) {
	n, err := neighbourEntry(op.Interface, op.Addr)
	if err != nil {
		return None{}, err
	}
	if n.HardwareAddr, err = net.ParseMAC(op.MAC); err != nil {
		return None{}, err
	}
	return None{}, netlink.NeighSet(n)
}

// ForgetNeighbour removes an entry of the neighbour table, so that the kernel resolves the address again.
type ForgetNeighbour struct {
	Interface string
	Addr      netip.Addr
}

func (op ForgetNeighbour) run() (None, error) {
	n, err := neighbourEntry(op.Interface, op.Addr)
	if err != nil {
		return None{}, err
	}
	return None{}, netlink.NeighDel(n)
}

func neighbourEntry(name string, addr netip.Addr) (*netlink.Neigh, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice(), State: netlink.NUD_PERMANENT}, nil
}

// LoadMasquerade loads rules as netavark's, in place of those that it loaded before: what comes from the prefixes may
// leave, masqueraded; what goes to them must belong to a connection; everything else that is forwarded is dropped, unless
// Open. What goes to the TCP port Drop is dropped as well; 0 for none.
type LoadMasquerade struct {
	Prefixes []netip.Prefix
	Open     bool
	Drop     uint16
}

func (op LoadMasquerade) run() (None, error) {
	c, err := nftables.New()
	if err != nil {
		return None{}, err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "engine"}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	policy := nftables.ChainPolicyDrop
	if op.Open {
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
	if op.Drop != 0 {
		add(forward, drop, tcpTo(op.Drop))
	}
	for _, prefix := range op.Prefixes {
		const src, dst = true, false
		add(forward, accept, within(prefix, dst, expr.CmpOpEq), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED))
		add(forward, accept, within(prefix, src, expr.CmpOpEq))
		add(post, &expr.Masq{}, within(prefix, src, expr.CmpOpEq), within(prefix, dst, expr.CmpOpNeq))
	}
	return None{}, c.Flush()
}

// tcpTo compares the protocol with TCP and the destination port with port.
func tcpTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// ctState reports whether the connection tracking state is one of bits.
func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// within compares the source or the destination address with a prefix.
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
