package rawsock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Addr has space for a struct sockaddr_in or sockaddr_in6.
type Addr struct{ unix.RawSockaddrInet6 }

// Set fills in a for an IPv4 or, with v6, an IPv6 socket, and returns its length in bytes. For an IPv6 socket an IPv4 address
// becomes an IPv4-mapped one. scope is the scope ID of a link-local IPv6 address, else 0.
func (a *Addr) Set(ap netip.AddrPort, v6 bool, scope uint32) uint32 {
	if !v6 {
		p := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		p.Family, p.Addr = unix.AF_INET, ap.Addr().As4()
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&p.Port))[:], ap.Port())
		return unix.SizeofSockaddrInet4
	}
	a.Family, a.Addr, a.Scope_id, a.Flowinfo = unix.AF_INET6, ap.Addr().As16(), scope, 0
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&a.Port))[:], ap.Port())
	return unix.SizeofSockaddrInet6
}

// Get returns the address, unmapped, and the scope ID of an IPv6 address. The zero AddrPort means an unknown family.
func (a *Addr) Get() (ap netip.AddrPort, scope uint32) {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&a.Port))[:])
	switch a.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr), port), 0
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), port), a.Scope_id
	}
	return netip.AddrPort{}, 0
}
