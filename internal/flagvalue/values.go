package flagvalue

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"rootlessnet"
)

var (
	_ pflag.Value = (*Publish)(nil)
	_ pflag.Value = (*Subnets)(nil)
	_ pflag.Value = (*Resolvers)(nil)
	_ pflag.Value = (*Hosts)(nil)
	_ pflag.Value = (*Addr)(nil)
	_ pflag.Value = (*MAC)(nil)
	_ pflag.Value = (*Loopback)(nil)
	_ pflag.Value = (*Level)(nil)
)

// Publish collects specifications of published ports, see rootlessnet.ParsePortSpec.
type Publish struct{ Specs []string }

func (v *Publish) Set(s string) error {
	if _, err := rootlessnet.ParsePortSpec(s); err != nil {
		return err
	}
	v.Specs = append(v.Specs, s)
	return nil
}
func (v *Publish) String() string { return strings.Join(v.Specs, " ") }
func (v *Publish) Type() string   { return "spec" }

// Subnets collects at most one prefix of each address family.
type Subnets struct{ List []netip.Prefix }

func (v *Subnets) Set(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("invalid CIDR address: %s", s)
	}
	for _, other := range v.List {
		if other.Addr().Is4() == p.Addr().Is4() {
			return errors.New("second subnet of the same family")
		}
	}
	v.List = append(v.List, p)
	return nil
}
func (v *Subnets) String() string { return "" }
func (v *Subnets) Type() string   { return "cidr" }

// Resolvers collects addresses of DNS servers.
type Resolvers struct{ List *[]netip.Addr }

func (v *Resolvers) Set(s string) error {
	addr, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return errors.New("IP address is not correctly formatted: " + s)
	}
	*v.List = append(*v.List, addr.Unmap())
	return nil
}
func (v *Resolvers) String() string { return "" }
func (v *Resolvers) Type() string   { return "address" }

// Hosts collects entries of Config.ExtraHosts.
type Hosts struct{ List *[]string }

func (v *Hosts) Set(s string) error {
	if err := rootlessnet.CheckExtraHost(s); err != nil {
		return err
	}
	*v.List = append(*v.List, s)
	return nil
}
func (v *Hosts) String() string { return "" }
func (v *Hosts) Type() string   { return "name:address" }

// Addr is an address of the given family.
type Addr struct {
	Addr   *netip.Addr
	Family int // 4 or 6
}

func (v *Addr) Set(s string) error {
	addr, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return fmt.Errorf("failed to parse IP: %q", s)
	}
	if addr = addr.Unmap(); addr.Is4() != (v.Family == 4) || addr.Zone() != "" {
		return fmt.Errorf("invalid IPv%d address: %s", v.Family, s)
	}
	*v.Addr = addr
	return nil
}
func (v *Addr) String() string { return "" }
func (v *Addr) Type() string   { return "address" }

// MAC is an Ethernet address (6 bytes).
type MAC struct{ MAC *net.HardwareAddr }

func (v *MAC) Set(s string) error {
	mac, err := net.ParseMAC(strings.TrimSpace(s))
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("%s is not a valid mac address", s)
	}
	*v.MAC = mac
	return nil
}
func (v *MAC) String() string { return "" }
func (v *MAC) Type() string   { return "address" }

// Loopback collects the open ports of the host's loopback, see rootlessnet.ParseHostLoopback.
type Loopback struct{ To *rootlessnet.HostLoopback }

func (v *Loopback) Set(s string) error {
	h, err := rootlessnet.ParseHostLoopback(s)
	if err != nil {
		return err
	}
	v.To.All = v.To.All || h.All
	v.To.Ports = append(v.To.Ports, h.Ports...)
	return nil
}
func (v *Loopback) String() string { return "" }
func (v *Loopback) Type() string   { return "ports" }

// Size is a number of bytes, with a unit as in docker run's sizes: b, k, m or g (powers of 1024).
type Size struct{ Bytes *int64 }

func (v *Size) Set(s string) error {
	digits := strings.TrimRight(strings.ToLower(strings.TrimSpace(s)), "b")
	shift := 0
	if i := strings.IndexAny(digits, "kmg"); i >= 0 && i == len(digits)-1 {
		shift = 10 * (1 + strings.IndexByte("kmg", digits[i]))
		digits = digits[:i]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return fmt.Errorf("invalid size: %q", s)
	}
	*v.Bytes = n << shift
	return nil
}

func (v *Size) String() string {
	if v.Bytes == nil {
		return ""
	}
	n, unit := *v.Bytes, "b"
	for _, u := range []string{"k", "m", "g"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatInt(n, 10) + unit
}
func (v *Size) Type() string { return "size" }

// Level is the lowest log level that is printed. The zero value is warn.
type Level struct {
	level slog.Level
	set   bool
}

func (v *Level) Set(s string) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[s]
	if !ok {
		return errors.New("must be debug, info, warn or error")
	}
	v.level, v.set = level, true
	return nil
}

func (v *Level) String() string {
	if !v.set {
		return "warn"
	}
	return strings.ToLower(v.level.String())
}
func (v *Level) Type() string { return "level" }

// Least returns the level.
func (v *Level) Least() slog.Level {
	if !v.set {
		return slog.LevelWarn
	}
	return v.level
}
