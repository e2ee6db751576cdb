package forwarder

import (
	"errors"
	"syscall"

	"rootlessnet/flow"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// Refusal is the answer to the guest when no flow is opened. The zero value is no answer: the guest's own timer ends the attempt.
type Refusal struct {
	kind refusalKind
	// ICMP is the error of the guest's address family, for sendICMP.
	icmp stack.ICMPError
}

type refusalKind uint8

const (
	silence refusalKind = iota
	reset
	sendICMP
)

// ICMP is the error to be sent to the guest; false: none.
func (r Refusal) ICMP() (stack.ICMPError, bool) { return r.icmp, r.kind == sendICMP }

// TCPRequest is a connection that the guest wants to open, before its handshake: *stack.TCPRequest and *stack.SYN.
type TCPRequest interface {
	Reset() error
	Unreachable(e stack.ICMPError) error
	Ignore()
}

var (
	_ TCPRequest = (*stack.TCPRequest)(nil)
	_ TCPRequest = (*stack.SYN)(nil)
)

// Answer answers a TCP request with the refusal. Errors are ignored: an answer that the stack cannot send counts as lost.
func (r Refusal) Answer(q TCPRequest) {
	switch r.kind {
	case reset:
		_ = q.Reset()
	case sendICMP:
		_ = q.Unreachable(r.icmp)
	default:
		q.Ignore()
	}
}

// cause is why there is no flow, in the categories of a router or host that answers.
type cause uint8

const (
	unknown    cause = iota // a timeout, no resources, or a verdict of silence
	refused                 // nothing listens
	prohibited              // by a filter or a rule
	hostUnreachable
	noRoute
)

// causeOfVerdict translates the actions of a policy.
func causeOfVerdict(a policy.Action) cause {
	switch a {
	case policy.Refuse:
		return refused
	case policy.Prohibit:
		return prohibited
	case policy.Unreachable:
		return hostUnreachable
	case policy.NoRoute:
		return noRoute
	}
	return unknown
}

// causeOfErrno translates what the host's kernel has answered to connect(2) or sendmsg(2). v4 is the family of the host's
// socket.
func causeOfErrno(errno syscall.Errno, v4 bool) cause {
	switch errno {
	case syscall.ECONNREFUSED, syscall.ECONNRESET:
		return refused
	case syscall.EACCES, syscall.EPERM:
		return prohibited
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		return hostUnreachable
	case syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EAFNOSUPPORT, syscall.EINVAL:
		// EAFNOSUPPORT: a kernel without IPv6. EINVAL: the source address cannot be used on the route.
		return noRoute
	case syscall.EADDRNOTAVAIL:
		if v4 {
			return unknown // no free local port: a temporary condition, and the guest tries again
		}
		return noRoute // no address of this family
	}
	return unknown
}

// refusal is the one table from causes to answers. v4 is set if the guest's flow is IPv4.
//
//	cause             TCP                      UDP and echo
//	nothing listens   RST                      port unreachable
//	prohibited        administratively prohibited
//	host unreachable  host (ICMPv6: address) unreachable
//	no route          net unreachable (ICMPv6: no route)
//	unknown           silence
func refusal(c cause, proto flow.Proto, v4 bool) Refusal {
	switch c {
	case refused:
		if proto == flow.TCP {
			return Refusal{kind: reset}
		}
		return Refusal{sendICMP, stack.PortUnreachable(v4)}
	case prohibited:
		return Refusal{sendICMP, stack.Prohibited(v4)}
	case hostUnreachable:
		return Refusal{sendICMP, stack.HostUnreachable(v4)}
	case noRoute:
		return Refusal{sendICMP, stack.NetUnreachable(v4)}
	}
	return Refusal{}
}

// RefusalOf is the answer to a flow that the host's kernel, or the network behind it, has refused with err: the received ICMP
// error where it is of the guest's family, else what a router with the host's routes and filters would have sent.
// A connection is reset where nothing listens, also where a filter on the path has answered "port unreachable": a kernel may
// treat an ICMP error as temporary and retransmit after a second, while a reset ends the connect at once (tcp_v4_err,
// net/ipv4/tcp_ipv4.c, while the socket is in use). hostV4 is the family of the host's socket, guestV4 that of the guest's flow.
func RefusalOf(err error, proto flow.Proto, hostV4, guestV4 bool) Refusal {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return Refusal{}
	}
	c := causeOfErrno(errno, hostV4)
	var de *DialError
	if c != refused && errors.As(err, &de) && de.Queued != nil && guestV4 == hostV4 {
		return Refusal{sendICMP, de.Queued.ICMP(guestV4)}
	}
	return refusal(c, proto, guestV4)
}

// OutOfResources reports whether err is a lack of descriptors, buffers or memory, which is temporary.
func OutOfResources(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
		return true
	}
	return false
}
