package forwarder

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

const (
	// maxLoopbackDatagram is the largest payload of UDP over IPv6, and more than that over IPv4.
	maxLoopbackDatagram = 65535
	// maxLoopbackFlows bounds the sockets that programs can make us open by sending from ever new ports.
	maxLoopbackFlows = 1024
	// loopbackTurn is how many datagrams of a socket are handled before others have their turn.
	loopbackTurn = 64
	// maxLoopbackFirst is the largest first datagram that is kept for the other family: what asks a question is short.
	maxLoopbackFirst = 1500
)

// loopbackKey tells clients apart. The address they have sent to is what they expect the answer from.
type loopbackKey struct {
	client, local [16]byte
	port          uint16
	scope         uint32
}

// loopbackFlow is one client of a UDP port, with a socket of its own: the server tells clients apart by it.
type loopbackFlow struct {
	p        *LoopbackPort
	key      loopbackKey
	fd       int
	token    int32
	alt      netip.AddrPort // the zero value: was tried, or is not needed any more
	first    []byte         // what alt would be asked
	answered bool
	last     time.Time
}

// tellDestinations has the kernel say what address of its own each datagram was sent to.
func (p *LoopbackPort) tellDestinations() error {
	if p.ipv6 { // IPv4 as well, as mapped addresses
		return unix.SetsockoptInt(p.fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(p.fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
}

// receiveLocked takes what clients have sent.
func (p *LoopbackPort) receiveLocked() {
	var oob [128]byte
	for range loopbackTurn {
		n, oobn, _, from, err := unix.Recvmsg(p.fd, p.l.buf[:], oob[:], 0)
		if err != nil {
			return // nothing left, or an ICMP error of an answer
		}
		key, ok := keyOf(from, oob[:oobn])
		f := p.flows[key]
		if ok && f == nil {
			f = p.openLocked(key)
		}
		if f == nil {
			p.l.stats.DroppedDatagrams++
			continue
		}
		if f.alt.IsValid() && f.first == nil && n <= maxLoopbackFirst {
			f.first = append([]byte{}, p.l.buf[:n]...)
		}
		f.last = time.Now()
		p.l.stats.Datagrams++
		if err := unix.Send(f.fd, p.l.buf[:n], 0); err == unix.ECONNREFUSED { // what an earlier datagram has met
			f.refusedLocked()
		}
	}
}

// keyOf reads where a datagram is from, and which address it was sent to.
func keyOf(from unix.Sockaddr, oob []byte) (k loopbackKey, ok bool) {
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

func (p *LoopbackPort) openLocked(key loopbackKey) *loopbackFlow {
	if p.l.flows >= maxLoopbackFlows || p.l.flows >= p.l.most {
		return nil
	}
	f := &loopbackFlow{p: p, key: key, fd: -1}
	var dst netip.AddrPort
	dst, f.alt = loopbacks(!netip.AddrFrom16(key.client).Is4In6(), p.to)
	if f.connectLocked(dst) != nil {
		dst, f.alt = f.alt, netip.AddrPort{}
		if f.connectLocked(dst) != nil {
			return nil
		}
	}
	p.flows[key] = f
	p.l.flows++
	if p.l.sweeper == nil {
		p.l.sweeper = time.AfterFunc(sweepInterval, p.l.sweep)
	}
	return f
}

// connectLocked gives the flow a socket to dst.
func (f *loopbackFlow) connectLocked(dst netip.AddrPort) error {
	fd, err := f.p.l.datagramSocket(dst.Addr().Is6())
	if err != nil {
		return err
	}
	if err = rawsock.Connect(fd, dst); err == nil {
		f.token, err = f.p.l.loop.Watch(fd, unix.EPOLLIN, f)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	f.fd = fd
	return nil
}

func (l *Loopback) datagramSocket(ipv6 bool) (fd int, err error) {
	if l.mint != nil {
		return l.mint.GetUDP(ipv6)
	}
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// Ready is called by the loop when the server has answered.
func (f *loopbackFlow) Ready(uint32) {
	l := f.p.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for range loopbackTurn {
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
		f.answered, f.alt, f.first, f.last = true, netip.AddrPort{}, nil, time.Now()
		l.stats.Datagrams++
		if f.p.answerLocked(f.key, l.buf[:n]) != nil {
			l.stats.DroppedDatagrams++
		}
	}
}

// answerLocked sends to a client, from the address it has sent to.
func (p *LoopbackPort) answerLocked(k loopbackKey, data []byte) error {
	if !p.ipv6 {
		to := &unix.SockaddrInet4{Port: int(k.port), Addr: netip.AddrFrom16(k.client).Unmap().As4()}
		info := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: netip.AddrFrom16(k.local).Unmap().As4()})
		return unix.Sendmsg(p.fd, data, info, to, 0)
	}
	to := &unix.SockaddrInet6{Port: int(k.port), Addr: k.client, ZoneId: k.scope}
	return unix.Sendmsg(p.fd, data, unix.PktInfo6(&unix.Inet6Pktinfo{Addr: k.local}), to, 0)
}

// refusedLocked asks the other family, if the client's first datagram met nobody.
func (f *loopbackFlow) refusedLocked() {
	if !f.alt.IsValid() || f.answered {
		return
	}
	alt := f.alt
	f.alt = netip.AddrPort{}
	f.closeLocked()
	if f.connectLocked(alt) != nil {
		f.forgetLocked()
		return
	}
	if f.first != nil {
		_ = unix.Send(f.fd, f.first, 0)
		f.first = nil
	}
}

func (f *loopbackFlow) closeLocked() {
	f.p.l.loop.Unwatch(f.fd, f.token)
	unix.Close(f.fd)
	f.fd = -1
}

func (f *loopbackFlow) endLocked() {
	f.closeLocked()
	f.forgetLocked()
}

func (f *loopbackFlow) forgetLocked() {
	delete(f.p.flows, f.key)
	f.p.l.flows--
}

// sweep ends flows that have been silent for as long as a firewall would wait.
func (l *Loopback) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweeper = nil
	if l.closed {
		return
	}
	now := time.Now()
	for p := range l.ports {
		for _, f := range p.flows {
			idle := unrepliedTimeout
			if f.answered {
				idle = assuredTimeout
			}
			if now.Sub(f.last) > idle {
				f.endLocked()
			}
		}
	}
	if l.flows > 0 {
		l.sweeper = time.AfterFunc(sweepInterval, l.sweep)
	}
}
