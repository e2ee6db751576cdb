package splicetcp

import (
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/rawsock"
)

// A host whose SYN was lost sends it again at the moment at which the guest sends its own again. The guest's second SYN may
// therefore arrive while the first one is being re-injected: the connection that is about to be accepted must not be dropped.
func TestSpliceSYNSentAgainWhileReinjecting(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	server := w.fullServer()
	port := w.freePort()
	if !w.syn(port, guestTTL) {
		t.Fatal("the request was left to the stack path")
	}
	// The listener's backlog has connections that belong to no request, and behind them the guest's own. Accepting all of
	// them takes a while, in which the SYN arrives again.
	for range acceptMost - 1 {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(w.listener))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	guest := w.connect(port)
	again := make(chan bool, 1)
	go func() {
		for {
			switch s, there := w.request(port); {
			case !there:
				again <- true // too late: it was joined already
				return
			case s != dialling:
				again <- w.syn(port, guestTTL)
				return
			}
			runtime.Gosched()
		}
	}()
	server.drain(t)
	if !<-again {
		t.Error("the SYN that was sent again was left to the stack path")
	}
	var h int
	forwardlab.Eventually(t, "the server's end", func() (ok bool) {
		var err error
		h, _, err = rawsock.Accept(server.fd)
		return err == nil
	})
	defer unix.Close(h)
	forwardlab.SendString(t, guest, "x")
	b := make([]byte, 1)
	forwardlab.Eventually(t, "the data", func() bool { n, _ := unix.Read(h, b); return n == 1 })
	if s := w.Stats(); s.ReinjectFailed != 0 || s.Outbound != 1 {
		t.Errorf("%+v", s)
	}
}
