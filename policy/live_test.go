package policy

import (
	"net/netip"
	"testing"
)

// TestLive: a change applies from the next call of Judge on.
func TestLive(t *testing.T) {
	old, now := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("198.51.100.7")
	own := func(a netip.Addr) Config { return Config{Sources: []netip.Prefix{netip.PrefixFrom(a, 32)}} }
	l := NewLive(own(old))
	judge := func(from netip.Addr) Action {
		return l.Judge(TCP, netip.AddrPortFrom(from, 1000), netip.MustParseAddrPort("203.0.113.1:80")).Action
	}
	if judge(old) != Allow || judge(now) == Allow {
		t.Error("the initial config does not apply")
	}
	l.Set(own(now))
	if judge(old) == Allow || judge(now) != Allow {
		t.Error("the new config does not apply")
	}
}
