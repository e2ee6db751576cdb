package loopback

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/rawsock"
)

const (
	// maxDatagram is the largest payload of UDP over IPv6, and more than that over IPv4.
	maxDatagram = 65535
	// maxFlows bounds the sockets that programs can make us open by sending from ever new ports.
	maxFlows = 1024
	// batch is how many datagrams of a socket are handled before those of other sockets are.
	batch = 64
	// maxFirst is the largest first datagram that is kept for the other family: a query is short.
	maxFirst = 1500
	// altPause bounds how often the address of the other family is tried again while nothing listens on either, which takes
	// two sockets.
	altPause = time.Second
)

// clientKey identifies a client. It includes the local address to which the client sent: the answer must come from there.
type clientKey struct {
	client, local [16]byte
	port          uint16
	scope         uint32
}

// udpFlow is one client of a UDP port, with a socket of its own: by its port the server distinguishes the clients.
type udpFlow struct {
	flow.Entry
	count flow.Counters // guarded by p.l.mu

	p        *Port
	key      clientKey
	fd       int
	token    int32
	to       netip.AddrPort // the server's address: that of the client's family, or where that refuses the other
	alt      netip.AddrPort // the other one; zero when it is not needed
	onAlt    bool           // to is that of the other family
	altAt    time.Time      // when that has refused
	first    []byte         // a datagram to the client's own family, for the other
	answered bool
	began    time.Time
	last     time.Time
}

// requestDestinations has the kernel say which of its addresses each datagram was sent to.
func (p *Port) requestDestinations() error {
	if p.ipv6 { // IPv4 as well, as mapped addresses
		return unix.SetsockoptInt(p.fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(p.fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
}

// receiveLocked takes what clients have sent.
func (p *Port) receiveLocked() {
	var oob [128]byte
	for range batch {
		n, oobn, _, from, err := unix.Recvmsg(p.fd, p.l.buf[:], oob[:], 0)
		if err != nil {
			return // nothing is left, or an earlier answer met an ICMP error
		}
		key, ok := keyOf(from, oob[:oobn])
		f, now := p.flows[key], time.Now()
		if f != nil && !f.answered && now.Sub(f.began) >= forwarder.UnrepliedTimeout {
			f.endLocked() // what the client sends does not prolong it
			f = nil
		}
		if ok && f == nil {
			f = p.openLocked(key)
		}
		if f == nil {
			p.l.stats.DroppedDatagrams++
			continue
		}
		keep := f.alt.IsValid() && !f.onAlt && f.first == nil && n <= maxFirst
		if keep {
			f.first = append([]byte{}, p.l.buf[:n]...)
		}
		f.last = now
		f.carriedLocked(n, p.l.pool == nil)
		if err := unix.Send(f.fd, p.l.buf[:n], 0); err == unix.ECONNREFUSED { // the error of an earlier datagram
			if f.refusedLocked(); f.fd >= 0 && !(keep && f.onAlt) { // else it has been sent
				_ = unix.Send(f.fd, p.l.buf[:n], 0)
			}
		}
	}
}

// keyOf reads where a datagram is from, and which address it was sent to.
func keyOf(from unix.Sockaddr, oob []byte) (k clientKey, ok bool) {
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		k.client, k.port = netip.AddrFrom4(a.Addr).As16(), uint16(a.Port)
	case *unix.SockaddrInet6:
		k.client, k.port, k.scope = a.Addr, uint16(a.Port), a.ZoneId
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return k, false
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			k.local = [16]byte(m.Data[:16])
			ok = true
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			k.local = netip.AddrFrom4([4]byte(m.Data[8:12])).As16() // ipi_addr
			ok = true
		}
	}
	return k, ok && k.port != 0
}

func (p *Port) openLocked(key clientKey) *udpFlow {
	if p.l.flows >= maxFlows || !p.l.f.Budget.Take(fdbudget.Relay, 1) {
		return nil
	}
	f := &udpFlow{p: p, key: key, fd: -1, began: time.Now()}
	f.to, f.alt = loopbacks(!netip.AddrFrom16(key.client).Is4In6(), p.to)
	if f.connectLocked(f.to) != nil {
		f.to, f.alt = f.alt, netip.AddrPort{}
		if f.connectLocked(f.to) != nil {
			p.l.give(1)
			return nil
		}
	}
	client := netip.AddrPortFrom(netip.AddrFrom16(key.client).Unmap(), key.port)
	at := netip.AddrPortFrom(netip.AddrFrom16(key.local).Unmap(), rawsock.LocalAddr(p.fd).Port())
	f.Entry = p.l.entry(flow.UDP, client, at, f.to)
	p.l.f.Flows.Add(&f.Entry, f)
	p.flows[key] = f
	p.l.flows++
	if p.l.sweeper == nil {
		p.l.sweeper = time.AfterFunc(forwarder.SweepInterval, p.l.sweep)
	}
	return f
}

// connectLocked gives the flow a socket to dst.
func (f *udpFlow) connectLocked(dst netip.AddrPort) error {
	fd, err := f.p.l.datagramSocket(dst.Addr().Is6())
	if err != nil {
		return err
	}
	var token int32
	if err = rawsock.Connect(fd, dst); err == nil {
		token, err = f.p.l.loop.Watch(fd, unix.EPOLLIN, f)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	f.fd, f.token = fd, token
	return nil
}

func (l *Relay) datagramSocket(ipv6 bool) (fd int, err error) {
	if l.pool != nil {
		return l.pool.GetUDP(ipv6)
	}
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// Ready is called by the loop when the server has answered.
func (f *udpFlow) Ready(uint32) {
	l := f.p.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for range batch {
		if f.fd < 0 {
			return
		}
		n, _, err := unix.Recvfrom(f.fd, l.buf[:], 0)
		if err == unix.ECONNREFUSED {
			f.refusedLocked()
			continue
		}
		if err != nil {
			return
		}
		f.answered, f.first, f.last = true, nil, time.Now()
		if !f.onAlt {
			f.alt = netip.AddrPort{}
		}
		f.carriedLocked(n, l.pool != nil)
		if f.p.answerLocked(f.key, l.buf[:n]) != nil {
			l.stats.DroppedDatagrams++
		}
	}
}

// answerLocked sends to a client, from the address it has sent to.
func (p *Port) answerLocked(k clientKey, data []byte) error {
	if !p.ipv6 {
		to := &unix.SockaddrInet4{Port: int(k.port), Addr: netip.AddrFrom16(k.client).Unmap().As4()}
		info := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: netip.AddrFrom16(k.local).Unmap().As4()})
		return unix.Sendmsg(p.fd, data, info, to, 0)
	}
	to := &unix.SockaddrInet6{Port: int(k.port), Addr: k.client, ZoneId: k.scope}
	return unix.Sendmsg(p.fd, data, unix.PktInfo6(&unix.Inet6Pktinfo{Addr: k.local}), to, 0)
}

// refusedLocked sends the client's datagram to the address of the other family, if nothing listens on that of its own. If that
// refuses too, the flow goes back: a server may be started later.
func (f *udpFlow) refusedLocked() {
	now := time.Now()
	if !f.alt.IsValid() || !f.onAlt && now.Sub(f.altAt) < altPause {
		f.first = nil // refused, like what comes next
		return
	}
	fd, token := f.fd, f.token
	if f.connectLocked(f.alt) != nil { // no socket now: the flow stays where it is
		f.altAt, f.first = now, nil
		return
	}
	f.p.l.loop.Unwatch(fd, token)
	unix.Close(fd)
	if f.onAlt {
		f.altAt = now
	}
	f.to, f.alt, f.onAlt = f.alt, f.to, !f.onAlt
	if f.first != nil && f.onAlt {
		_ = unix.Send(f.fd, f.first, 0)
	}
	f.first = nil
}

func (f *udpFlow) closeLocked() {
	f.p.l.loop.Unwatch(f.fd, f.token)
	unix.Close(f.fd)
	f.fd = -1
}

func (f *udpFlow) endLocked() {
	f.closeLocked()
	f.forgetLocked()
}

func (f *udpFlow) forgetLocked() {
	delete(f.p.flows, f.key)
	f.p.l.flows--
	f.p.l.give(1)
	f.p.l.f.Flows.Remove(&f.Entry, f.count)
}

// sweep ends flows that have been silent for as long as a firewall would wait.
func (l *Relay) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweeper = nil
	if l.closed {
		return
	}
	now := time.Now()
	for p := range l.ports {
		for _, f := range p.flows {
			idle := forwarder.UnrepliedTimeout
			if f.answered {
				idle = forwarder.AssuredTimeout
			}
			if now.Sub(f.last) > idle {
				f.endLocked()
			}
		}
	}
	if l.flows > 0 {
		l.sweeper = time.AfterFunc(forwarder.SweepInterval, l.sweep)
	}
}

// carriedLocked counts a datagram of n bytes, on its way to the host or to the guest.
func (f *udpFlow) carriedLocked(n int, toHost bool) {
	f.p.l.stats.Datagrams++
	if toHost {
		f.count.PacketsToHost++
		f.count.BytesToHost += uint64(n)
	} else {
		f.count.PacketsToGuest++
		f.count.BytesToGuest += uint64(n)
	}
}

// Counters implements flow.Carrier.
func (f *udpFlow) Counters() flow.Counters {
	f.p.l.mu.Lock()
	defer f.p.l.mu.Unlock()
	c := f.count
	if f.answered {
		c.State = flow.Established
	}
	return c
}

// Kill implements flow.Carrier.
func (f *udpFlow) Kill() {
	f.p.l.mu.Lock()
	defer f.p.l.mu.Unlock()
	if f.p.flows[f.key] == f {
		f.endLocked()
	}
}
