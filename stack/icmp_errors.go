package stack

// The ICMP and ICMPv6 errors that a gateway sends (RFC 792, RFC 1191, RFC 1812 5.2.7.1; RFC 4443 3). v4 selects which of the
// two protocols the answered packet belongs to.

// ICMP types (RFC 792) and ICMPv6 types (RFC 4443) of errors, and the codes among them that are not plain numbers below.
const (
	ICMP4Unreachable  = 3
	ICMP4FragNeeded   = 4 // code of ICMP4Unreachable
	ICMP4TimeExceeded = 11

	ICMP6Unreachable  = 1
	ICMP6TooBig       = 2
	ICMP6TimeExceeded = 3
)

func byFamily(v4 bool, type4, code4, type6, code6 uint8) ICMPError {
	if v4 {
		return ICMPError{Type: type4, Code: code4}
	}
	return ICMPError{Type: type6, Code: code6}
}

// NetUnreachable is "net unreachable", of ICMPv6 "no route to destination".
func NetUnreachable(v4 bool) ICMPError {
	return byFamily(v4, ICMP4Unreachable, 0, ICMP6Unreachable, 0)
}

// HostUnreachable is "host unreachable", of ICMPv6 "address unreachable".
func HostUnreachable(v4 bool) ICMPError {
	return byFamily(v4, ICMP4Unreachable, 1, ICMP6Unreachable, 3)
}

// PortUnreachable means that nothing listens on the port.
func PortUnreachable(v4 bool) ICMPError {
	return byFamily(v4, ICMP4Unreachable, 3, ICMP6Unreachable, 4)
}

// Prohibited is "communication administratively prohibited".
func Prohibited(v4 bool) ICMPError {
	return byFamily(v4, ICMP4Unreachable, 13, ICMP6Unreachable, 1)
}

// TimeExceeded means that the time to live ran out in transit.
func TimeExceeded(v4 bool) ICMPError {
	return byFamily(v4, ICMP4TimeExceeded, 0, ICMP6TimeExceeded, 0)
}

// TooBig is "fragmentation needed and DF set", of ICMPv6 "packet too big"; mtu is in bytes.
func TooBig(v4 bool, mtu uint32) ICMPError {
	e := byFamily(v4, ICMP4Unreachable, ICMP4FragNeeded, ICMP6TooBig, 0)
	e.MTU = mtu
	return e
}
