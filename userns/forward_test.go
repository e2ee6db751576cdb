package userns

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestForward: the rules load, more than once is no harm, and sockets for what is beyond are in stock.
func TestForward(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		s, d := diverted(t, ipv6)
		if _, err := d.Mint.Get(false, true); !errors.Is(err, ErrNoSocket) {
			t.Errorf("before it is wanted: %v", err)
		}
		for range 2 {
			if err := s.Forward(t.Context(), d); err != nil {
				if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) {
					need(t, "nf_tables with nat, ct and socket: "+err.Error())
				}
				t.Fatal(err)
			}
		}
		end := time.Now().Add(5 * time.Second)
		fd, err := d.Mint.Get(ipv6, true)
		for ; errors.Is(err, ErrNoSocket) && time.Now().Before(end); fd, err = d.Mint.Get(ipv6, true) {
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || mark != markBeyond {
			t.Errorf("mark %#x, %v", mark, err)
		}
		domain := unix.AF_INET
		if ipv6 {
			domain = unix.AF_INET6
		}
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || got != domain {
			t.Errorf("domain %d, %v", got, err)
		}
	}
}

// TestForwardFails: it comes after Divert, in a sandbox that is there.
func TestForwardFails(t *testing.T) {
	s := start(t, Config{Link: testLink(KindPacket)})
	if err := s.Forward(t.Context(), &Diverted{}); err == nil {
		t.Errorf("got %v", err)
	}
	s2, d := diverted(t, false)
	s2.Close()
	if err := s2.Forward(t.Context(), d); err == nil {
		t.Error("in a sandbox that is gone")
	}
}

// TestMarks: none of them is another's, and the rule for those of the local road does not lead what is beyond to lo.
func TestMarks(t *testing.T) {
	for _, mark := range []uint32{markBeyond, ctCarried, ctMissed, 0} {
		if mark&divertMask == markDivert&divertMask {
			t.Errorf("%#x leads to lo", mark)
		}
	}
	for _, mark := range []uint32{markDivert, markSpeak, markBeyond, 0} {
		if mark&ctMask == ctCarried&ctMask {
			t.Errorf("%#x would be taken for a connection's", mark)
		}
	}
}
