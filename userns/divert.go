package userns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Diversion asks for the kernel's road inside: TCP that would leave by the uplink goes to sockets of our own instead.
// Connection requests still leave by the link, where the supervisor judges and dials them; it sends each on to the
// listener when there is somebody at the other end.
type Diversion struct {
	// Uplink is the interface's name.
	Uplink string `json:"uplink"`
	// Keep are services that stay on the link, whose connections are ended there: DNS.
	Keep []netip.AddrPort `json:"keep,omitempty"`
	// IPv6 is whether there is any.
	IPv6 bool `json:"ipv6,omitempty"`
}

// What the diversion owns in a namespace. The numbers are unlikely enough to be ours alone: a mark that the command sets
// for reasons of its own is lost only if it is one of these.
const (
	// markDivert leads to lo, and there to the listener.
	markDivert = 0x726e0001
	// markSpeak leads to lo. Sockets that speak for somebody outside carry it, and the command's answers to them inherit
	// it (net.ipv4.tcp_fwmark_accept).
	markSpeak = 0x726e0003
	// divertMask is where the two are alike.
	divertMask = ^uint32(markDivert ^ markSpeak)
	// markKeep is that of connections which came by the link: their answers leave by it.
	markKeep = 0x726e0002
	// divertTable is a routing table in which every address is local.
	divertTable = 0x726e
	// divertPref puts the rule for the mark right after that of the local addresses.
	divertPref = 1
	// divertName is that of the nftables table.
	divertName = "rootlessnet"

	divertBacklog = 4096
	// divertPort is where the listeners are, on an address that nothing can be connected to by itself: nobody listens on
	// tcpmux (RFC 1078), and only a socket on all addresses would collide.
	divertPort = 1
)

// The listeners' addresses: the IPv4 dummy address (RFC 7600) and one of the discard prefix (RFC 6666).
var (
	divertAddr4 = netip.AddrFrom4([4]byte{192, 0, 0, 8})
	divertAddr6 = netip.AddrFrom16([16]byte{0: 0x01, 15: 1})
)

// diversion is what set-up made; leave undoes it. Descriptors for the supervisor are in out: the socket for packets, the
// minter's, the IPv4 listener and, with IPv6, the other.
type diversion struct {
	nft *nftables.Conn
	out []*os.File
	// leave takes back what does not go with a descriptor.
	leave func()
}

// divert sets the road up, whole or not at all.
func divert(d *Diversion) (v *diversion, err error) {
	op := func(what string, err error) error {
		return &Error{Op: "divert TCP: " + what, Err: err, Hint: doctorHint}
	}
	link, err := netlink.LinkByName(d.Uplink)
	if err != nil {
		return nil, op("find "+d.Uplink, err)
	}
	v = &diversion{leave: func() {}}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	// accept_local: the request comes back on lo from an address that is the namespace's own.
	for _, s := range []string{"net/ipv4/conf/lo/accept_local", "net/ipv4/tcp_fwmark_accept"} {
		old, err := os.ReadFile("/proc/sys/" + s)
		if err == nil {
			err = writeSysctl(s, "1")
		}
		if err != nil {
			return nil, op("set "+s, err)
		}
		v.onLeave(func() { _ = writeSysctl(s, string(old)) })
	}
	leave, err := divertRoutes(d.IPv6)
	if err != nil {
		return nil, op("routing rule", err)
	}
	v.onLeave(leave)
	packets, err := packetSocket()
	if err != nil {
		return nil, op("packet socket", err)
	}
	v.out = append(v.out, packets)
	mint, err := startMinter()
	if err != nil {
		return nil, op("socket pair", err)
	}
	v.out = append(v.out, mint)
	addrs := []netip.Addr{divertAddr4}
	if d.IPv6 {
		addrs = append(addrs, divertAddr6)
	}
	for _, a := range addrs {
		l, err := divertListener(netip.AddrPortFrom(a, divertPort))
		if err != nil {
			return nil, op(fmt.Sprintf("listen on %v", a), err)
		}
		v.out = append(v.out, l)
	}
	// Last: from here on the command's connections depend on the rest.
	if v.nft, err = divertRules(d, uint32(link.Attrs().Index)); err != nil {
		return nil, op("nftables", err)
	}
	return v, nil
}

func (v *diversion) onLeave(f func()) {
	earlier := v.leave
	v.leave = func() { f(); earlier() }
}

func (v *diversion) close() {
	if v.nft != nil {
		_ = v.nft.CloseLasting() // the table is the connection's, and goes with it
	}
	closeAll(v.out) // for the second time, where they were sent: no harm in an os.File
	v.leave()
}

// divertRoutes leads what has the mark to lo.
func divertRoutes(ipv6 bool) (leave func(), err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return func() {}, err
	}
	var undo []func()
	leave = func() {
		for _, f := range undo {
			f()
		}
	}
	families := []int{netlink.FAMILY_V4}
	if ipv6 {
		families = append(families, netlink.FAMILY_V6)
	}
	for _, f := range families {
		any := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if f == netlink.FAMILY_V6 {
			any = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		route := &netlink.Route{Family: f, Dst: any, LinkIndex: lo.Attrs().Index, Table: divertTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST}
		if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			leave()
			return func() {}, err
		}
		undo = append(undo, func() { _ = netlink.RouteDel(route) })
		rule := netlink.NewRule()
		mask := divertMask
		rule.Family, rule.Mark, rule.Mask, rule.Table, rule.Priority = f, markDivert, &mask, divertTable, divertPref
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			leave()
			return func() {}, err
		}
		undo = append(undo, func() { _ = netlink.RuleDel(rule) })
	}
	return leave, nil
}

// packetSocket sends to lo, and receives nothing.
func packetSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, markDivert); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}

// divertListener listens on an address that is not there. Connections inherit its options.
func divertListener(a netip.AddrPort) (f *os.File, err error) {
	fd, err := transparentSocket(a.Addr().Is6())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if a.Addr().Is4() {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()})
	} else {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
	}
	if err == nil {
		err = unix.Listen(fd, divertBacklog)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// transparentSocket makes a TCP socket that may have anybody's address, ready to be joined with one of the host: no Nagle
// (the command's own kernel has its own), keep-alive at the system's pace, urgent data in line.
func transparentSocket(ipv6 bool) (fd int, err error) {
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if ipv6 {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP); err != nil {
		return -1, err
	}
	options := []struct{ level, name, value int }{
		{level, option, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_MARK, markSpeak},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
	}
	if ipv6 {
		options = append(options, struct{ level, name, value int }{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// divertRules loads the table:
//
//	table inet rootlessnet {
//	    flags owner
//	    chain out { type route hook output priority mangle
//	        oif != uplink return
//	        meta l4proto != tcp return
//	        ip daddr DNS tcp dport 53 return       # for each of Keep
//	        meta mark KEEP return
//	        tcp flags & (syn|ack) == syn return    # leaves by the link, to be judged
//	        meta mark set DIVERT
//	    }
//	    chain in { type filter hook prerouting priority mangle
//	        meta mark DIVERT iif lo meta l4proto tcp meta nfproto ipv4 tproxy ip to 192.0.0.8:1
//	        meta mark DIVERT iif lo meta l4proto tcp meta nfproto ipv6 tproxy ip6 to [100::1]:1
//	        iif uplink meta l4proto tcp tcp flags & (syn|ack) == syn meta mark set KEEP
//	    }
//	}
//
// The table belongs to the connection, where the kernel knows owners (Linux 5.12): the command cannot flush it with its
// own, and it is gone when the connection is closed.
func divertRules(d *Diversion, uplink uint32) (*nftables.Conn, error) {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: divertName}
	var owned bool
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(nl *mdnetlink.Conn) error {
		owned = ownTable(nl) == nil
		return nil
	}))
	if err != nil {
		return nil, err
	}
	if !owned {
		c.AddTable(table)
	}
	prio := nftables.ChainPriorityMangle
	out := c.AddChain(&nftables.Chain{Table: table, Name: "out", Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput, Priority: prio})
	in := c.AddChain(&nftables.Chain{Table: table, Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: prio})
	rule := func(chain *nftables.Chain, exprs ...[]expr.Any) {
		r := &nftables.Rule{Table: table, Chain: chain}
		for _, e := range exprs {
			r.Exprs = append(r.Exprs, e...)
		}
		c.AddRule(r)
	}
	ret := []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	tcp := metaIs(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})
	const lo = 1 // the first interface of every namespace
	rule(out, metaIs(expr.MetaKeyOIF, expr.CmpOpNeq, number(uplink)), ret)
	rule(out, metaIs(expr.MetaKeyL4PROTO, expr.CmpOpNeq, []byte{unix.IPPROTO_TCP}), ret)
	for _, k := range d.Keep {
		rule(out, family(k.Addr()), daddrIs(k.Addr()), dportIs(k.Port()), ret)
	}
	rule(out, metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markKeep)), ret)
	rule(out, isSYN(), ret)
	rule(out, setMark(markDivert))
	diverted := metaIs(expr.MetaKeyMARK, expr.CmpOpEq, number(markDivert))
	onLo := metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(lo))
	rule(in, diverted, onLo, tcp, family(divertAddr4), tproxy(divertAddr4))
	if d.IPv6 {
		rule(in, diverted, onLo, tcp, family(divertAddr6), tproxy(divertAddr6))
	}
	rule(in, metaIs(expr.MetaKeyIIF, expr.CmpOpEq, number(uplink)), tcp, isSYN(), setMark(markKeep))
	if err := c.Flush(); err != nil {
		_ = c.CloseLasting()
		return nil, err
	}
	return c, nil
}

// ownTable makes the table one that belongs to nl (NFT_TABLE_F_OWNER, include/uapi/linux/netfilter/nf_tables.h). The
// library does not know the flag.
func ownTable(nl *mdnetlink.Conn) error {
	const nftTableOwner = 2
	attrs, err := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(divertName + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(nftTableOwner)},
	})
	if err != nil {
		return err
	}
	message := func(typ int, flags mdnetlink.HeaderFlags, family byte, subsystem uint16, data []byte) mdnetlink.Message {
		head := append([]byte{family, unix.NFNETLINK_V0}, binaryutil.BigEndian.PutUint16(subsystem)...)
		return mdnetlink.Message{Header: mdnetlink.Header{Type: mdnetlink.HeaderType(typ), Flags: mdnetlink.Request | flags}, Data: append(head, data...)}
	}
	if _, err := nl.SendMessages([]mdnetlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, mdnetlink.Acknowledge|mdnetlink.Create, unix.NFPROTO_INET, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
	}); err != nil {
		return err
	}
	_, err = nl.Receive()
	return err
}

func number(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

func metaIs(key expr.MetaKey, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: value}}
}

// family matches packets of a's.
func family(a netip.Addr) []expr.Any {
	f := byte(unix.NFPROTO_IPV4)
	if a.Is6() {
		f = unix.NFPROTO_IPV6
	}
	return metaIs(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f})
}

// daddrIs compares the destination at its place in the header of a's family.
func daddrIs(a netip.Addr) []expr.Any {
	offset, size := uint32(16), uint32(4)
	if a.Is6() {
		offset, size = 24, 16
	}
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: a.AsSlice()},
	}
}

func dportIs(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// isSYN matches a first segment: SYN without ACK.
func isSYN() []expr.Any {
	const flags, syn, ack = 13, 2, 16 // offset, bits (RFC 9293 3.1)
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{syn}},
	}
}

func setMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: number(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

// tproxy gives a segment to the socket of its connection, or to the listener on a.
func tproxy(a netip.Addr) []expr.Any {
	f := byte(unix.NFPROTO_IPV4)
	if a.Is6() {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: a.AsSlice()},
		&expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(divertPort)},
		&expr.TProxy{Family: f, TableFamily: unix.NFPROTO_INET, RegAddr: unix.NFT_REG_1, RegPort: unix.NFT_REG_2},
	}
}
