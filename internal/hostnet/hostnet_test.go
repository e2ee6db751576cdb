package hostnet_test

import (
	"net/netip"
	"testing"

	"rootlessnet/internal/hostnet"
	"rootlessnet/internal/nettest/skip"
	"rootlessnet/plan"
)

var _ plan.Host = hostnet.Routes{}

// TestRoutes needs nothing but a loopback interface that is up.
func TestRoutes(t *testing.T) {
	found, err := hostnet.Routes{}.Prefixes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		if p.IsValid() && p.Contains(netip.MustParseAddr("127.0.0.1")) && p.Bits() > 0 {
			return
		}
	}
	skip.Missing(t, "the loopback interface has no address here")
}
