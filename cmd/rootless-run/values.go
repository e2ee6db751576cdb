package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"rootlessnet"
)

// The values of flags check what they are given at once, so that the error names the flag.
var (
	_ pflag.Value = (*publishValue)(nil)
	_ pflag.Value = (*subnetsValue)(nil)
	_ pflag.Value = (*dnsValue)(nil)
	_ pflag.Value = (*hostsValue)(nil)
	_ pflag.Value = (*addrValue)(nil)
	_ pflag.Value = (*macValue)(nil)
	_ pflag.Value = (*loopbackValue)(nil)
	_ pflag.Value = (*levelValue)(nil)
)

type publishValue struct{ specs []string }

func (v *publishValue) Set(s string) error {
	if _, err := rootlessnet.ParsePortSpec(s); err != nil {
		return err
	}
	v.specs = append(v.specs, s)
	return nil
}
func (v *publishValue) String() string { return strings.Join(v.specs, " ") }
func (v *publishValue) Type() string   { return "spec" }

type subnetsValue struct{ list []netip.Prefix }

func (v *subnetsValue) Set(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("invalid CIDR address: %s", s)
	}
	for _, other := range v.list {
		if other.Addr().Is4() == p.Addr().Is4() {
			return errors.New("second subnet of the same family")
		}
	}
	v.list = append(v.list, p)
	return nil
}
func (v *subnetsValue) String() string { return "" }
func (v *subnetsValue) Type() string   { return "cidr" }

type dnsValue struct{ list *[]netip.Addr }

func (v *dnsValue) Set(s string) error {
	addr, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return errors.New("IP address is not correctly formatted: " + s)
	}
	*v.list = append(*v.list, addr.Unmap())
	return nil
}
func (v *dnsValue) String() string { return "" }
func (v *dnsValue) Type() string   { return "address" }

type hostsValue struct{ list *[]string }

func (v *hostsValue) Set(s string) error {
	if err := rootlessnet.CheckExtraHost(s); err != nil {
		return err
	}
	*v.list = append(*v.list, s)
	return nil
}
func (v *hostsValue) String() string { return "" }
func (v *hostsValue) Type() string   { return "name:address" }

type addrValue struct {
	addr   *netip.Addr
	family int // 4 or 6
}

func (v *addrValue) Set(s string) error {
	addr, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return fmt.Errorf("failed to parse IP: %q", s)
	}
	if addr = addr.Unmap(); addr.Is4() != (v.family == 4) || addr.Zone() != "" {
		return fmt.Errorf("invalid IPv%d address: %s", v.family, s)
	}
	*v.addr = addr
	return nil
}
func (v *addrValue) String() string { return "" }
func (v *addrValue) Type() string   { return "address" }

type macValue struct{ mac *net.HardwareAddr }

func (v *macValue) Set(s string) error {
	mac, err := net.ParseMAC(strings.TrimSpace(s))
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("%s is not a valid mac address", s)
	}
	*v.mac = mac
	return nil
}
func (v *macValue) String() string { return "" }
func (v *macValue) Type() string   { return "address" }

type loopbackValue struct{ to *rootlessnet.HostLoopback }

func (v *loopbackValue) Set(s string) error {
	h, err := rootlessnet.ParseHostLoopback(s)
	if err != nil {
		return err
	}
	v.to.All = v.to.All || h.All
	v.to.Ports = append(v.to.Ports, h.Ports...)
	return nil
}
func (v *loopbackValue) String() string { return "" }
func (v *loopbackValue) Type() string   { return "ports" }

// levelValue is the least level that is printed. Its zero value is warn.
type levelValue struct {
	level slog.Level
	set   bool
}

func (v *levelValue) Set(s string) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[s]
	if !ok {
		return errors.New("must be debug, info, warn or error")
	}
	v.level, v.set = level, true
	return nil
}

func (v *levelValue) String() string {
	if !v.set {
		return "warn"
	}
	return strings.ToLower(v.level.String())
}
func (v *levelValue) Type() string { return "level" }

// least returns the level to print from.
func (v *levelValue) least() slog.Level {
	if !v.set {
		return slog.LevelWarn
	}
	return v.level
}
