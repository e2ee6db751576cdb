package plan

import "slices"

// Readdressed is a copy of p with the addresses, routes and special addresses of c.Plan, and with the outbound addresses and
// interfaces of c; no other field of c is used. Hardware addresses, the addresses that answer DNS and the switches (NoTCP and
// the like) keep their values. It is a *UsageError if c.Plan turns an address family on or off or changes the addresses that
// answer DNS.
func (p *Plan) Readdressed(c *Config) (*Plan, error) {
	now := *p
	now.Addrs, now.GuestPrefixes, now.Routes, now.Special, now.dnsAddrs, now.Warnings = Addresses{}, nil, nil, nil, nil, nil
	if err := now.setPlan(&Config{Plan: c.Plan}); err != nil {
		return nil, err
	}
	switch {
	case now.Addrs.Gateway.IsValid() != p.Addrs.Gateway.IsValid() || now.Addrs.Gateway6.IsValid() != p.Addrs.Gateway6.IsValid():
		return nil, usage("Plan", "a family cannot be turned on or off")
	case !slices.Equal(now.dnsAddrs, p.dnsAddrs):
		return nil, usage("Plan", "the addresses that answer DNS cannot be changed")
	}
	now.MAC, now.GatewayMAC, now.HostAddresses = p.MAC, p.GatewayMAC, p.HostAddresses
	now.NoTCP, now.NoUDP, now.NoICMP, now.NoDHCP, now.NoRA = p.NoTCP, p.NoUDP, p.NoICMP, p.NoDHCP, p.NoRA
	now.NoNDP, now.DHCPv6, now.LoopbackToLoopback = p.NoNDP, p.DHCPv6, p.LoopbackToLoopback
	now.Outbound = c.outbound()
	return &now, nil
}
