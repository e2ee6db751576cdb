package udp

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

// Senders, the reader, evictions, the sweep, snapshots and published ports at once, and Close while they run.
func TestUDPConcurrent(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, func(c *worldConfig) { c.maxSockets = 8; c.guest = discardGuest{} })
	w.maxFlows, w.maxPeers = 64, 8
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(fn func(i int)) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					fn(i)
				}
			}
		})
	}
	for range 2 {
		loop(func(i int) { w.send(netip.AddrPortFrom(forwardlab.Guest4.Addr(), uint16(1+i%20)), h.At, "x") })
	}
	loop(func(i int) { w.send(forwardlab.Guest4, netip.AddrPortFrom(h.At.Addr(), uint16(20000+i%50)), "x") })
	loop(func(i int) {
		w.advance(time.Second)
		w.sweep()
		_ = w.f.Flows.List()
		_ = w.Stats()
		time.Sleep(time.Millisecond)
	})
	loop(func(i int) {
		p, err := w.ListenUDP(UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server4})
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			return
		}
		h.Send(t, p.Addr(), "x")
		w.HandleUDPError(stack.Flow{Src: netip.AddrPortFrom(forwardlab.Gateway4, h.At.Port()), Dst: server4}, stack.PortUnreachable(true))
		_ = p.Close()
	})
	time.Sleep(300 * time.Millisecond)
	if st := w.Stats(); st.Sockets > 8 || st.Flows > 64 || st.OutPackets == 0 {
		t.Errorf("%+v", st)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if st := w.Stats(); st.Sockets != 0 || st.Flows != 0 {
		t.Errorf("after Close: %+v", st)
	}
	close(stop)
	wg.Wait()
}

type discardGuest struct{}

func (discardGuest) WriteUDP(*stack.Datagram) error                          { return nil }
func (discardGuest) WriteUDPError(stack.Flow, []byte, stack.ICMPError) error { return nil }
func (discardGuest) WriteEchoReply(*stack.Echo) error                        { return nil }
func (discardGuest) WriteEchoError(*stack.Echo, stack.ICMPError) error       { return nil }

func FuzzControl(f *testing.F) {
	var c controlBuffer
	copy(c.add(unix.IPPROTO_IP, unix.IP_RECVERR, 32), []byte{111, 0, 0, 0, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 127, 0, 0, 1})
	f.Add(c.buf[:c.n])
	var d controlBuffer
	d.addLocal(forwardlab.Gateway6, 3, true)
	d.add(unix.IPPROTO_UDP, unix.UDP_GRO, 4)
	f.Add(d.buf[:d.n])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := parseControl(b)
		for _, v4 := range []bool{true, false} {
			_ = c.err.ICMP(v4)
		}
		if c.local.Is4In6() || c.err.Offender.Is4In6() {
			t.Error("a mapped address came through")
		}
	})
}
