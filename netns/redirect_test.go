package netns

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/pooltest"
	"rootlessnet/internal/nettest/skip"
)

// redirectBy sets up a redirect for the uplink in the namespace of the process, and ends it with the test.
func redirectBy(t *testing.T, uplink string, ipv6 bool) (*Redirect, *RedirectHandles) {
	t.Helper()
	c := RedirectConfig{Uplink: uplink, IPv6: ipv6}
	r, err := NewRedirect(&c, false)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) {
			skip.Missing(t, "nf_tables: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	h, err := NewRedirectHandles(r.Files(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeHandles(h) })
	return r, h
}

func closeHandles(h *RedirectHandles) {
	h.Pool.Close()
	h.Rules.Close()
	h.Packets.Close()
	closeFiles(h.Listeners)
}

func take(t *testing.T, get func() (int, error)) int {
	t.Helper()
	return pooltest.Take(t, get, ErrPoolEmpty)
}

func transparent(p *Pool, ipv6 bool) func() (int, error) {
	return func() (int, error) { return p.Get(ipv6, false) }
}

// TestRedirect: a redirect has its routes, rules, listeners and sysctls while it is open; a second one is refused; and after
// Close the namespace has its state of before, so that another can be set up.
func TestRedirect(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	setUp(t, l)
	before := redirectState(t)
	for _, ipv6 := range []bool{true, false} {
		r, h := redirectBy(t, l.Name, ipv6)
		families := 1
		if ipv6 {
			families = 2
		}
		if len(h.Listeners) != families {
			t.Errorf("IPv6 %v: %d listeners", ipv6, len(h.Listeners))
		}
		want := redirectStateOf{rules: before.rules + families, routes: before.routes + 2*families, acceptLocal: "1", mark: "1"}
		if got := redirectState(t); got != want {
			t.Errorf("IPv6 %v: %+v, want %+v", ipv6, got, want)
		}
		if _, err := NewRedirect(&RedirectConfig{Uplink: l.Name}, false); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a second redirect: %v", err)
		}
		closeHandles(h)
		r.Close()
		if got := redirectState(t); got != before {
			t.Errorf("after the end: %+v, want %+v", got, before)
		}
	}
}

// redirectStateOf is what a redirect changes in a namespace, besides its nftables table.
type redirectStateOf struct {
	rules, routes     int
	acceptLocal, mark string
}

func redirectState(t *testing.T) (s redirectStateOf) {
	t.Helper()
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	s.rules = len(rules)
	for _, f := range families(true) {
		routes, err := netlink.RouteListFiltered(f, &netlink.Route{Table: redirectTable}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		s.routes += len(routes)
	}
	for name, value := range map[string]*string{"conf/lo/accept_local": &s.acceptLocal, "tcp_fwmark_accept": &s.mark} {
		b, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
		if err != nil {
			t.Fatal(err)
		}
		*value = strings.TrimSpace(string(b))
	}
	return s
}

// TestRedirectFails: a redirect that cannot be set up completely leaves nothing, and one after it can be set up.
func TestRedirectFails(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	setUp(t, l)
	before := redirectState(t)
	for range 3 {
		_, err := NewRedirect(&RedirectConfig{Uplink: "nothere0", IPv6: true}, false)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), "nothere0") {
			t.Fatalf("got %v", err)
		}
	}
	// The listener of the second family is refused, when the first one is open.
	six, err := redirectListener(netip.AddrPortFrom(redirectAddr6, redirectPort))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewRedirect(&RedirectConfig{Uplink: l.Name, IPv6: true}, false); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
	six.Close()
	if got := redirectState(t); got != before {
		t.Errorf("left behind: %+v, want %+v", got, before)
	}
	redirectBy(t, l.Name, true)
}

// TestMarks: no two marks are the same, and the policy rule for the marks of lo matches no other.
func TestMarks(t *testing.T) {
	for _, mark := range []uint32{markForwarded, markDeliver, ctRedirected, ctNoSocket, 0} {
		if mark&redirectMask == markRedirect&redirectMask {
			t.Errorf("%#x is routed to lo", mark)
		}
	}
	for _, mark := range []uint32{markRedirect, markTransparent, markForwarded, markDeliver, 0} {
		if mark&ctMask == ctRedirected&ctMask {
			t.Errorf("%#x would be taken for the mark of a connection", mark)
		}
	}
}
