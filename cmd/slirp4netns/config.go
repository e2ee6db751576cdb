package main

import (
	"log/slog"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/slirp"
)

// target says which namespace is meant; tap is the device where the caller has opened it.
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

// config says in the engine's words what the options mean.
func config(o *slirp.Options, log *slog.Logger) rootlessnet.Config {
	// The original leaves the clouds' metadata services open.
	c := rootlessnet.Config{
		IfName: o.TAPName, MTU: o.MTU, MAC: o.MAC, Configure: o.Configure, OutboundAddr: o.Outbound4, OutboundAddr6: o.Outbound6,
		AllowMetadata: true, Confine: o.Sandbox || !bindsLowPorts(), Logger: log,
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

// bindsLowPorts says whether this process may bind any port of the host, which forwarded ports need: real root without
// --enable-sandbox keeps its capabilities for that.
func bindsLowPorts() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_NET_BIND_SERVICE) == 0 {
		return false
	}
	return inInitialUserNS()
}

// inInitialUserNS looks at the inode of the namespace, which is fixed for the first one (include/linux/proc_ns.h,
// PROC_USER_INIT_INO).
func inInitialUserNS() bool {
	const initialUserNS = 0xEFFFFFFD
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &st) == nil && st.Ino == initialUserNS
}
