package forwardlab

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"rootlessnet/forwarder"
	"rootlessnet/policy"
)

// TestAlternative checks the answer that a datapath for TCP sends to the guest when both destinations of a decision fail: the
// alternative's error if that is a refusal, and the first one's otherwise. It runs within EnterNetns; wire connects guest with a
// stack that passes its SYNs to the datapath.
func TestAlternative(t *testing.T, f *forwarder.Forwarder, guest *Guest, wire *Wire) {
	closed := Listen(t, "127.0.0.1:0")
	refuses := AP(closed.Addr().String())
	_ = closed.Close()
	noHost, noRoute := AP("192.88.99.9:9"), AP("100.64.0.1:9") // of the namespace's own routing table
	at := AP("192.0.2.1:80")
	for _, c := range []struct {
		name     string
		dst, alt netip.AddrPort
		icmp     uint32
		want     error
	}{
		{"both are refused", refuses, refuses, 0, syscall.ECONNREFUSED},
		{"the alternative is refused", noHost, refuses, 0, syscall.ECONNREFUSED},
		{"the first is refused", refuses, noHost, 0, syscall.ECONNREFUSED},
		{"neither is refused", noHost, noRoute, 3<<8 | 1, syscall.EHOSTUNREACH},
		{"neither is refused, the other way round", noRoute, noHost, 3 << 8, syscall.ENETUNREACH},
	} {
		f.AddEndpoint(forwarder.EndpointConfig{Policy: JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict {
			return policy.Verdict{Action: policy.Allow, Dst: c.dst, Alt: c.alt}
		})})
		wire.ICMP.Store(0)
		if _, err := guest.Dial(at, Patience); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if got := wire.ICMP.Load(); got != c.icmp {
			t.Errorf("%s: ICMP %d/%d, want %d/%d", c.name, got>>8, got&255, c.icmp>>8, c.icmp&255)
		}
	}
}
