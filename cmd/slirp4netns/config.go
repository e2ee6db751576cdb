package main

import (
	"log/slog"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/slirp"
)

// target returns the namespace to connect. tap is the device if the caller has opened it, or the connection of a virtual machine.
func target(o *slirp.Options, tap *os.File) rootlessnet.Target {
	t := rootlessnet.Target{UserNS: o.UserNSPath, TAP: tap}
	switch o.Type {
	case slirp.ByPID:
		t.PID = o.PID
	case slirp.ByPath:
		t.NetNS = o.Path
	}
	return t
}

// config translates the options into a Config of the library.
func config(o *slirp.Options, log *slog.Logger) rootlessnet.Config {
	// The original does not block the metadata services of cloud providers (169.254.169.254), so AllowMetadata is set; nor does it
	// look where a datagram comes from, so UDPFullCone is.
	c := rootlessnet.Config{
		IfName: o.TAPName, MTU: o.MTU, MAC: o.MAC, Configure: o.Configure, OutboundAddr: o.Outbound4, OutboundAddr6: o.Outbound6,
		AllowMetadata: true, UDPFullCone: true, Confine: o.Sandbox || !bindsLowPorts(), Logger: log,
	}
	gateway, dns := rootlessnet.SpecialAddr{To: rootlessnet.ToLoopback}, rootlessnet.SpecialAddr{DNS: true}
	c.HostLoopback.All = true
	if o.DisableHostLoopback {
		gateway.To, c.HostLoopback.All = rootlessnet.ToNoRoute, false
	}
	if o.DisableDNS {
		dns = rootlessnet.SpecialAddr{To: rootlessnet.ToDrop}
	}
	p := &rootlessnet.NetworkPlan{
		Addrs:   []netip.Prefix{netip.PrefixFrom(o.Guest(), o.CIDR.Bits())},
		Gateway: o.Gateway(),
	}
	special := func(s rootlessnet.SpecialAddr, addr netip.Addr) {
		s.Addr = addr
		p.Special = append(p.Special, s)
	}
	special(gateway, o.Gateway())
	special(dns, o.DNS())
	if o.IPv6 {
		p.Addrs = append(p.Addrs, netip.PrefixFrom(slirp.Guest6, slirp.CIDR6.Bits()))
		p.Gateway6 = slirp.Gateway6
		special(gateway, slirp.Gateway6)
		special(dns, slirp.DNS6)
	}
	c.Plan = p
	return c
}

// bindsLowPorts reports whether this process may bind ports of the host below net.ipv4.ip_unprivileged_port_start. Root of the host
// keeps its capabilities without --enable-sandbox, because forwarded ports may need that.
func bindsLowPorts() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_NET_BIND_SERVICE) == 0 {
		return false
	}
	return inInitialUserNS()
}

// inInitialUserNS reports whether this process is in the initial user namespace, which has a fixed inode (include/linux/proc_ns.h,
// PROC_USER_INIT_INO).
func inInitialUserNS() bool {
	const initialUserNS = 0xEFFFFFFD
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &st) == nil && st.Ino == initialUserNS
}
