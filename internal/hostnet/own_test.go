package hostnet_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"rootlessnet/internal/hostnet"
)

// TestOwn: the addresses are those of an interface, of their family, and no loopback ones.
func TestOwn(t *testing.T) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var have []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			have = append(have, p.Addr())
		}
	}
	v4, v6 := hostnet.Own()
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() && (!slices.Contains(have, a) || !a.IsGlobalUnicast() || a.Is4() != (a == v4)) {
			t.Errorf("%v, of %v", a, have)
		}
	}
	global4 := slices.ContainsFunc(have, func(a netip.Addr) bool { return a.Is4() && a.IsGlobalUnicast() })
	if global4 != v4.IsValid() {
		t.Errorf("%v, of %v", v4, have)
	}
}

// TestWatch: the function is called at the beginning, and Watch returns when its context ends.
func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	called := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- hostnet.Watch(ctx, func() {
			select {
			case called <- struct{}{}:
			default:
			}
		})
	}()
	select {
	case <-called:
	case <-time.After(5 * time.Second):
		t.Fatal("not called")
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it did not end with its context")
	}
}
