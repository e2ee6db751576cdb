package netns

import (
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/skip"
)

// TestForwarding: the rules for forwarded traffic load, a second time changes nothing, and the pool has sockets with their mark.
func TestForwarding(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	setUp(t, l)
	before := redirectState(t)
	for _, ipv6 := range []bool{false, true} {
		r, h := redirectBy(t, l.Name, ipv6)
		if _, err := h.Pool.Get(false, true); !errors.Is(err, ErrPoolEmpty) {
			t.Errorf("before AddForwarding: %v", err)
		}
		for range 2 {
			if err := r.AddForwarding(); err != nil {
				if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) {
					skip.Missing(t, "nf_tables with nat, ct and socket: %v", err)
				}
				t.Fatal(err)
			}
		}
		h.Pool.FillForwarded()
		fd := take(t, func() (int, error) { return h.Pool.Get(ipv6, true) })
		defer unix.Close(fd)
		if mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || mark != markForwarded {
			t.Errorf("mark %#x, %v", mark, err)
		}
		domain := unix.AF_INET
		if ipv6 {
			domain = unix.AF_INET6
		}
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || got != domain {
			t.Errorf("domain %d, %v", got, err)
		}
		closeHandles(h)
		r.Close()
		if got := redirectState(t); got != before {
			t.Errorf("left behind: %+v, want %+v", got, before)
		}
	}
}
