package forwarder_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// request records the answer to a TCP request.
type request struct{ answer string }

func (r *request) Reset() error                        { r.answer += "reset"; return nil }
func (r *request) Unreachable(e stack.ICMPError) error { r.answer += icmp(e); return nil }
func (r *request) Ignore()                             { r.answer += "silence" }

func icmp(e stack.ICMPError) string { return fmt.Sprintf("%d/%d", e.Type, e.Code) }

// answered is the answer to the guest: "reset", "silence", or type and code of an ICMP error.
func answered(r forwarder.Refusal, proto flow.Proto) string {
	if proto == flow.TCP {
		var q request
		r.Answer(&q)
		return q.answer
	}
	if e, send := r.ICMP(); send {
		return icmp(e)
	}
	return "silence"
}

// row is one row of the table in refusal.go: the answer for TCP and for the other protocols, over IPv4 and IPv6.
type row struct{ tcp4, tcp6, udp4, udp6 string }

var (
	rowRefused     = row{"reset", "reset", "3/3", "1/4"}
	rowProhibited  = row{"3/13", "1/1", "3/13", "1/1"}
	rowUnreachable = row{"3/1", "1/3", "3/1", "1/3"}
	rowNoRoute     = row{"3/0", "1/0", "3/0", "1/0"}
	rowSilence     = row{"silence", "silence", "silence", "silence"}
)

func (r row) of(proto flow.Proto, v4 bool) string {
	switch {
	case proto == flow.TCP && v4:
		return r.tcp4
	case proto == flow.TCP:
		return r.tcp6
	case v4:
		return r.udp4
	}
	return r.udp6
}

// protocols are those of a family.
func protocols(v4 bool) []flow.Proto {
	if v4 {
		return []flow.Proto{flow.TCP, flow.UDP, flow.ICMP}
	}
	return []flow.Proto{flow.TCP, flow.UDP, flow.ICMPv6}
}

func TestRefusalOfAVerdict(t *testing.T) {
	var verdict policy.Action
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	f.AddEndpoint(forwarder.EndpointConfig{Policy: forwardlab.JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict {
		return policy.Verdict{Action: verdict, Reason: policy.Loopback}
	})})
	for action, want := range map[policy.Action]row{policy.Drop: rowSilence, policy.Refuse: rowRefused, policy.Prohibit: rowProhibited,
		policy.Unreachable: rowUnreachable, policy.NoRoute: rowNoRoute} {
		verdict = action
		for _, v4 := range []bool{true, false} {
			for _, proto := range protocols(v4) {
				k := flow.Key{Proto: proto, Src: forwardlab.Guest4, Dst: forwardlab.AP("192.0.2.1:80")}
				if !v4 {
					k.Src, k.Dst = forwardlab.Guest6, forwardlab.AP("[2001:db8::1]:80")
				}
				d := f.Decide(k, 1)
				if d.Action != forwarder.Refuse || d.Reason != policy.Loopback {
					t.Fatalf("%v: %+v", action, d)
				}
				if got := answered(d.Refusal, proto); got != want.of(proto, v4) {
					t.Errorf("%v, IPv4 %v, verdict %v: %s, want %s", proto, v4, action, got, want.of(proto, v4))
				}
			}
		}
	}
}

// What the host's kernel answers to connect(2) and sendmsg(2), over the same family and translated to the other family.
func TestRefusalOfAnErrno(t *testing.T) {
	for errno, want := range map[syscall.Errno]struct{ host4, host6 row }{
		syscall.ECONNREFUSED:  {rowRefused, rowRefused},
		syscall.ECONNRESET:    {rowRefused, rowRefused},
		syscall.EACCES:        {rowProhibited, rowProhibited},
		syscall.EPERM:         {rowProhibited, rowProhibited},
		syscall.EHOSTUNREACH:  {rowUnreachable, rowUnreachable},
		syscall.EHOSTDOWN:     {rowUnreachable, rowUnreachable},
		syscall.ENETUNREACH:   {rowNoRoute, rowNoRoute},
		syscall.ENETDOWN:      {rowNoRoute, rowNoRoute},
		syscall.EAFNOSUPPORT:  {rowNoRoute, rowNoRoute},
		syscall.EINVAL:        {rowNoRoute, rowNoRoute},
		syscall.EADDRNOTAVAIL: {rowSilence, rowNoRoute}, // IPv4: no free local port; IPv6: no address
		syscall.ETIMEDOUT:     {rowSilence, rowSilence},
		syscall.EMFILE:        {rowSilence, rowSilence},
		syscall.ENOBUFS:       {rowSilence, rowSilence},
		syscall.EIO:           {rowSilence, rowSilence},
	} {
		for _, host4 := range []bool{true, false} {
			want := map[bool]row{true: want.host4, false: want.host6}[host4]
			for _, guest4 := range []bool{true, false} {
				for _, proto := range protocols(guest4) {
					for _, err := range []error{errno, &forwarder.DialError{Errno: errno}, fmt.Errorf("dial: %w", errno)} {
						if got := answered(forwarder.RefusalOf(err, proto, host4, guest4), proto); got != want.of(proto, guest4) {
							t.Errorf("%v, host IPv4 %v, guest IPv4 %v, %v (%T): %s, want %s", proto, host4, guest4, errno, err, got, want.of(proto, guest4))
						}
					}
				}
			}
		}
	}
	if r := forwarder.RefusalOf(fmt.Errorf("of no errno"), flow.TCP, true, true); answered(r, flow.TCP) != "silence" {
		t.Error("an error without an errno is answered")
	}
}

// An ICMP error that came for the dial reaches a guest of its family unchanged, and one of the other family as the error with
// the same meaning.
func TestRefusalOfAQueuedError(t *testing.T) {
	const icmp4, icmp6 = unix.SO_EE_ORIGIN_ICMP, unix.SO_EE_ORIGIN_ICMP6
	for _, c := range []struct {
		q             forwarder.QueuedError
		host4         bool
		guest4, guest string // what a guest of IPv4 and one of IPv6 is answered
	}{
		{forwarder.QueuedError{Errno: unix.EHOSTUNREACH, Origin: icmp4, Type: 3, Code: 7}, true, "3/7", "1/3"},
		{forwarder.QueuedError{Errno: unix.EHOSTUNREACH, Origin: icmp4, Type: 3, Code: 13}, true, "3/13", "1/3"},
		{forwarder.QueuedError{Errno: unix.ENETUNREACH, Origin: icmp4, Type: 3, Code: 0}, true, "3/0", "1/0"},
		{forwarder.QueuedError{Errno: unix.EHOSTUNREACH, Origin: icmp6, Type: 1, Code: 3}, false, "3/1", "1/3"},
		{forwarder.QueuedError{Errno: unix.EACCES, Origin: icmp6, Type: 1, Code: 1}, false, "3/13", "1/1"},
		{forwarder.QueuedError{Errno: unix.EACCES, Origin: icmp6, Type: 1, Code: 5}, false, "3/13", "1/5"},
		{forwarder.QueuedError{Errno: unix.ENETUNREACH, Origin: icmp6, Type: 1, Code: 0}, false, "3/0", "1/0"},
	} {
		err := fmt.Errorf("dial: %w", &forwarder.DialError{Errno: c.q.Errno, Queued: &c.q})
		if got := answered(forwarder.RefusalOf(err, flow.TCP, c.host4, true), flow.TCP); got != c.guest4 {
			t.Errorf("%+v: a guest of IPv4 is answered %s, want %s", c.q, got, c.guest4)
		}
		if got := answered(forwarder.RefusalOf(err, flow.TCP, c.host4, false), flow.TCP); got != c.guest {
			t.Errorf("%+v: a guest of IPv6 is answered %s, want %s", c.q, got, c.guest)
		}
		// A datagram's error is converted without a dial.
		for v4, want := range map[bool]string{true: c.guest4, false: c.guest} {
			if got := icmp(c.q.ICMP(v4)); got != want {
				t.Errorf("%+v: ICMP(%v) is %s, want %s", c.q, v4, got, want)
			}
		}
	}
	// Errors about sizes, and "time exceeded".
	for _, c := range []struct {
		q    forwarder.QueuedError
		v4   bool
		want stack.ICMPError
	}{
		{forwarder.QueuedError{Errno: unix.EMSGSIZE, Origin: icmp6, Type: 2, Info: 1280}, false, stack.TooBig(false, 1280)},
		{forwarder.QueuedError{Errno: unix.EMSGSIZE, Origin: icmp6, Type: 2, Info: 1280}, true, stack.TooBig(true, 1280)},
		{forwarder.QueuedError{Errno: unix.EMSGSIZE, Origin: icmp4, Type: 3, Code: 4, Info: 1400}, false, stack.TooBig(false, 1400)},
		{forwarder.QueuedError{Errno: unix.EHOSTUNREACH, Origin: icmp6, Type: 3}, true, stack.HostUnreachable(true)},
		{forwarder.QueuedError{Errno: unix.EHOSTUNREACH, Origin: icmp4, Type: 11}, true, stack.TimeExceeded(true)},
		{forwarder.QueuedError{Errno: unix.EPROTO, Origin: icmp6, Type: 4}, true, stack.HostUnreachable(true)},
	} {
		if got := c.q.ICMP(c.v4); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.q, got, c.want)
		}
	}
}

// Filters that reject connections answer "port unreachable" by default. The guest gets a reset, as from a closed port.
func TestRefusalOfAPortUnreachable(t *testing.T) {
	for _, q := range []forwarder.QueuedError{{Errno: unix.ECONNREFUSED, Origin: unix.SO_EE_ORIGIN_ICMP, Type: 3, Code: 3},
		{Errno: unix.ECONNREFUSED, Origin: unix.SO_EE_ORIGIN_ICMP6, Type: 1, Code: 4}} {
		for _, guest4 := range []bool{true, false} {
			err := &forwarder.DialError{Errno: q.Errno, Queued: &q}
			if got := answered(forwarder.RefusalOf(err, flow.TCP, q.Origin == unix.SO_EE_ORIGIN_ICMP, guest4), flow.TCP); got != "reset" {
				t.Errorf("%+v, guest IPv4 %v: %s, want reset", q, guest4, got)
			}
		}
	}
}

func TestOutOfResources(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{syscall.EMFILE: true, syscall.ENFILE: true, syscall.ENOBUFS: true, syscall.ENOMEM: true,
		syscall.ECONNREFUSED: false, syscall.EADDRNOTAVAIL: false, syscall.EAGAIN: false} {
		if forwarder.OutOfResources(&forwarder.DialError{Errno: errno}) != want {
			t.Errorf("%v: not %v", errno, want)
		}
	}
	if forwarder.OutOfResources(nil) || forwarder.OutOfResources(fmt.Errorf("another")) {
		t.Error("an error without an errno is one of resources")
	}
}
