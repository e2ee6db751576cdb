package main

import (
	"errors"
	"fmt"
	"net"

	"rootlessnet/internal/nettest/topo"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Docker's bridge network, which is implemented in the kernel: a bridge, a veth pair, IP forwarding, and nftables rules for masquerade
// and published ports. On a host it requires root. The bench owns its network namespaces, so it has the capabilities in them.

const (
	bridgeName = "docker0"
	bridgeAddr = "172.17.0.1/16"
	dockerNet  = "172.17.0.0/16"
	dockerAddr = "172.17.0.2/16"
)

// makeDocker creates the second site, with a container's network namespace behind a bridge in "here".
func (tb *testbed) makeDocker() (err error) {
	s := &site{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.Topo, err = topo.New(topo.Options{MTU: tb.lanMTU}); err != nil {
		return err
	}
	if s.inside, err = topo.NewNS(); err != nil {
		return err
	}
	s.extra = closer(s.inside.Close)
	if err := s.Here.Do(func() error { return bridge(s.inside, tb.lanMTU) }); err != nil {
		return err
	}
	if err := s.inside.Do(setUpContainer); err != nil {
		return err
	}
	if err := s.Here.Sysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := s.Here.Do(dockerRules); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tb.docker = s
	return tb.serveThere(s)
}

type closer func()

func (c closer) Close() error {
	c()
	return nil
}

// bridge creates docker0 in the current namespace and a veth pair between it and the container's namespace.
func bridge(inside *topo.NS, mtu int) error {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: mtu}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0", MTU: mtu}, PeerName: "eth0",
		PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(inside.FD())}
	if err := netlink.LinkAdd(port); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	link, err := netlink.LinkByName("veth0")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(link, br), netlink.LinkSetUp(link), up(bridgeName, bridgeAddr))
}

// setUpContainer brings up the links of the container's namespace.
func setUpContainer() error {
	if err := errors.Join(up("lo", ""), up("eth0", dockerAddr)); err != nil {
		return err
	}
	gw, _, err := net.ParseCIDR(bridgeAddr)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Gw: gw})
}

// up adds an address to the link, unless addr is "", and sets the link up.
func up(name, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if addr != "" {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add %s to %s: %w", addr, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

// dockerRules adds rules equivalent to Docker's for a container with all of publicPorts published.
func dockerRules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	_, network, err := net.ParseCIDR(dockerNet)
	if err != nil {
		return err
	}
	guest, _, err := net.ParseCIDR(dockerAddr)
	if err != nil {
		return err
	}
	nat := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	pre := c.AddChain(&nftables.Chain{Name: "prerouting", Table: nat, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	post := c.AddChain(&nftables.Chain{Name: "postrouting", Table: nat, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	// iifname != docker0 tcp dport 10000-10999 dnat to 172.17.0.2
	c.AddRule(&nftables.Rule{Table: nat, Chain: pre, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(bridgeName)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binaryutil.BigEndian.PutUint16(publicPort),
			ToData: binaryutil.BigEndian.PutUint16(publicPort + publicPorts - 1)},
		&expr.Immediate{Register: 1, Data: guest.To4()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	// ip saddr 172.17.0.0/16 oifname != docker0 masquerade
	c.AddRule(&nftables.Rule{Table: nat, Chain: post, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: network.Mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network.IP.To4()},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(bridgeName)},
		&expr.Masq{},
	}})
	forwardRules(c)
	return c.Flush()
}

// forwardRules accepts packets of existing connections, from the bridge, and to published ports, and drops the rest, as Docker's chains
// do.
func forwardRules(c *nftables.Conn) {
	drop := nftables.ChainPolicyDrop
	filter := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	forward := c.AddChain(&nftables.Chain{Name: "forward", Table: filter, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	state := func(bits uint32) []expr.Any {
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			accept,
		}
	}
	status := []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(1 << 5), Xor: make([]byte, 4)}, // IPS_DST_NAT
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		accept,
	}
	fromBridge := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(bridgeName)},
		accept,
	}
	for _, rule := range [][]expr.Any{state(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), status, fromBridge} {
		c.AddRule(&nftables.Rule{Table: filter, Chain: forward, Exprs: rule})
	}
}

// ifname returns a name in the form in which nftables compares the whole name: with the final zero byte.
func ifname(name string) []byte { return append([]byte(name), 0) }
