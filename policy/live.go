package policy

import (
	"net/netip"
	"sync/atomic"
)

// Live is a Policy that can be replaced while it is in use, for instance when the guest's addresses change. Make one with
// NewLive. All methods are safe for concurrent use.
type Live struct {
	p atomic.Pointer[Policy]
}

// NewLive returns a Live with the Policy of c.
func NewLive(c Config) *Live {
	l := new(Live)
	l.Set(c)
	return l
}

// Set replaces the Policy by that of c. Calls of Judge that begin afterwards use it.
func (l *Live) Set(c Config) { l.p.Store(New(c)) }

// Judge is Policy.Judge of the current Policy.
func (l *Live) Judge(proto Proto, src, dst netip.AddrPort) Verdict {
	return l.p.Load().Judge(proto, src, dst)
}
