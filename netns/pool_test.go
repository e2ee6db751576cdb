package netns

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/pooltest"
)

// servedPool is a pool of the namespace of the process.
func servedPool(t *testing.T, o PoolOptions) *Pool {
	t.Helper()
	f, err := ServePool()
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPool(f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// TestPool: the pool is filled again while it is used, by sockets that are ready; once closed it is empty.
func TestPool(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	p := servedPool(t, PoolOptions{IPv6: true})
	for i := range 100 {
		ipv6 := i%2 == 1
		fd := take(t, transparent(p, ipv6))
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if ipv6 {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		for _, o := range []struct{ level, name, want int }{
			{level, option, 1}, {unix.SOL_SOCKET, unix.SO_MARK, markTransparent}, {unix.SOL_SOCKET, unix.SO_TYPE, unix.SOCK_STREAM},
			{unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}, {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		} {
			if v, err := unix.GetsockoptInt(fd, o.level, o.name); err != nil || v != o.want {
				t.Fatalf("socket %d: option %d/%d is %#x, %v; want %#x", i, o.level, o.name, v, err, o.want)
			}
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Fatalf("socket %d blocks: %#x, %v", i, flags, err)
		}
		unix.Close(fd)
	}
	p.Close()
	p.Close() // again
	if _, err := p.Get(false, false); !errors.Is(err, ErrPoolEmpty) {
		t.Errorf("from a pool that is closed: %v", err)
	}
}

// TestPoolPlain: the sockets without privilege have no mark and are of their kind.
func TestPoolPlain(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	p := servedPool(t, PoolOptions{IPv6: true, UDP: true})
	for _, c := range []struct {
		get    func(bool) (int, error)
		kind   int
		domain map[bool]int
	}{
		{p.GetUDP, unix.SOCK_DGRAM, map[bool]int{false: unix.AF_INET, true: unix.AF_INET6}},
		{p.GetPlain, unix.SOCK_STREAM, map[bool]int{false: unix.AF_INET, true: unix.AF_INET6}},
	} {
		for ipv6, domain := range c.domain {
			fd := take(t, func() (int, error) { return c.get(ipv6) })
			for _, o := range []struct{ name, want int }{{unix.SO_TYPE, c.kind}, {unix.SO_DOMAIN, domain}, {unix.SO_MARK, 0}} {
				if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.name); err != nil || v != o.want {
					t.Errorf("option %d is %d, %v; want %d", o.name, v, err, o.want)
				}
			}
			unix.Close(fd)
		}
	}
}

// TestPoolKeepsUp: sockets that are taken faster than they are opened make the batches larger, up to the limit, and no batch is
// requested twice.
func TestPoolKeepsUp(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, limit := range []int{maxBatch, 40, 1} {
		p := servedPool(t, PoolOptions{MaxBatch: limit})
		most := 0 // open and not taken
		for end := time.Now().Add(5 * time.Second); most < limit && time.Now().Before(end); {
			p.mu.Lock()
			most = max(most, len(p.idle[kindTransparent4].fds))
			p.mu.Unlock()
			for {
				fd, err := p.Get(false, false)
				if errors.Is(err, ErrPoolEmpty) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				unix.Close(fd)
			}
			time.Sleep(time.Millisecond)
		}
		if most < limit || most > limit+limit/2 {
			t.Errorf("limit %d: at most %d sockets ready", limit, most)
		}
		p.Close()
	}
}

// TestPoolAt: a server in the namespace sees the address that a socket of the pool was bound to, and its answer arrives. One
// pool in a namespace excludes another until it is closed; then the namespace has its state of before.
func TestPoolAt(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setUp(t, testLink(t))
	before := redirectState(t)
	const path = "/proc/thread-self/ns/net" // not /proc/self: openPacket may have moved the first thread
	p, err := OpenPoolAt(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	pooltest.CheckClientAddress(t, func(ipv6 bool) int { return take(t, transparent(p, ipv6)) })
	if _, err := NewRedirect(&RedirectConfig{Uplink: "eth0"}, false); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a redirect beside a pool: %v", err)
	}
	// The next pool waits for the end of this one.
	next := make(chan *Pool)
	go func() {
		q, err := OpenPoolAt(path, 0)
		if err != nil {
			t.Error(err)
		}
		next <- q
	}()
	select {
	case <-next:
		t.Error("two pools in one namespace")
	case <-time.After(50 * time.Millisecond):
	}
	p.Close()
	if q := <-next; q != nil {
		q.Close()
	}
	if got := redirectState(t); got != before {
		t.Errorf("left behind: %+v, want %+v", got, before)
	}
}
