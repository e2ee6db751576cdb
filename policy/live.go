package policy

import (
	"net/netip"
	"sync/atomic"
)

// Live is a Policy that can be replaced while it is asked: the guest's addresses may change. Make one with NewLive.
type Live struct {
	p atomic.Pointer[Policy]
}

// NewLive begins with c.
func NewLive(c Config) *Live {
	l := new(Live)
	l.Set(c)
	return l
}

// Set has every question that is asked from now on answered by c.
func (l *Live) Set(c Config) { l.p.Store(New(c)) }

// Judge is that of the Policy in force.
func (l *Live) Judge(proto Proto, src, dst netip.AddrPort) Verdict {
	return l.p.Load().Judge(proto, src, dst)
}
