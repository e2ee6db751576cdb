package sandbox

import (
	"testing"

	"rootlessnet/api"
	"rootlessnet/gateway"
)

// TestLeases: the network stays until the last member has ended, and no lease is given after that.
func TestLeases(t *testing.T) {
	var l leases
	release, err := l.take(api.LeaseMember)
	if err != nil {
		t.Fatal(err)
	}
	exec, err := l.take(api.LeaseExec)
	if err != nil || l.count() != 1 {
		t.Fatalf("%v; %d members", err, l.count())
	}
	idle, n := l.drain()
	if n != 1 {
		t.Fatalf("%d members", n)
	}
	second, err := l.take(api.LeaseMember)
	if err != nil {
		t.Fatalf("a member is refused while another one keeps the network: %v", err)
	}
	exec()
	release()
	release() // the second call does nothing
	select {
	case <-idle:
		t.Fatal("idle with a member left")
	default:
	}
	second()
	<-idle
	if _, err := l.take(api.LeaseExec); err == nil {
		t.Error("a lease after the end")
	}
}

func TestDrainWithoutMembers(t *testing.T) {
	var l leases
	if _, n := l.drain(); n != 0 {
		t.Errorf("%d members", n)
	}
	if _, err := l.take(api.LeaseMember); err == nil {
		t.Error("a lease after the end")
	}
}

// TestCounterNames: clients of the control socket find the spliced bytes under the names that the gateway gives them.
func TestCounterNames(t *testing.T) {
	if gateway.CounterSplicedIn != api.CounterSplicedIn || gateway.CounterSplicedOut != api.CounterSplicedOut {
		t.Error("package api and package gateway have different names")
	}
}
