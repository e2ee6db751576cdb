package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func TestParseResolvConf(t *testing.T) {
	for _, c := range []struct {
		file                     string
		servers, search, options string
	}{
		{"", "", "", ""},
		{"nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n", "127.0.0.53:53", ".", "edns0 trust-ad"},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2", "192.0.2.1:53 192.0.2.2:53", "", ""},
		{"nameserver\t2001:db8::1 # comment\n", "[2001:db8::1]:53", "", ""},
		{"nameserver fe80::1%eth0\n", "[fe80::1%eth0]:53", "", ""},
		{"nameserver ::ffff:192.0.2.1\n", "192.0.2.1:53", "", ""},
		{"#nameserver 192.0.2.1\n;nameserver 192.0.2.2\n nameserver 192.0.2.3\nnameserver\nnameserver x\nnameservers 192.0.2.4\n", "", "", ""},
		{"nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n", "1.1.1.1:53 2.2.2.2:53 3.3.3.3:53", "", ""},
		{"domain a.example b.example\n", "", "a.example", ""},
		{"domain a.example\nsearch b.example c.example\n", "", "b.example c.example", ""},
		{"search b.example\ndomain a.example\n", "", "a.example", ""},
		{"options ndots:2\noptions rotate\n", "", "", "ndots:2 rotate"},
		{"sortlist 130.155.160.0/255.255.240.0\nlookup file bind\n", "", "", ""},
		{"nameserver 192.0.2.1\r\nsearch a.example\r\n", "192.0.2.1:53", "a.example", ""},
		{"search a.example\x00b\x1b[31m caf\xc3\xa9.example\n", "", "a.example b [31m caf .example", ""},
	} {
		got := parseResolvConf([]byte(c.file))
		var servers []string
		for _, s := range got.servers {
			servers = append(servers, s.String())
		}
		if s := strings.Join(servers, " "); s != c.servers {
			t.Errorf("%q: servers %q, want %q", c.file, s, c.servers)
		}
		if s := strings.Join(got.search, " "); s != c.search {
			t.Errorf("%q: search %q, want %q", c.file, s, c.search)
		}
		if s := strings.Join(got.options, " "); s != c.options {
			t.Errorf("%q: options %q, want %q", c.file, s, c.options)
		}
	}
}

func TestGuestConfig(t *testing.T) {
	gw4, gw6 := netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00::3")
	const host = "nameserver 127.0.0.53\nsearch corp.example lan\noptions ndots:2\n"
	for _, c := range []struct {
		name, file string
		cfg        Config
		gateways   []netip.Addr
		want       string
	}{
		{"the host's", host, Config{}, []netip.Addr{gw4, gw6}, "nameserver 10.0.2.3\nnameserver fd00::3\nsearch corp.example lan\noptions ndots:2\n"},
		{"nothing to keep", "", Config{}, []netip.Addr{gw4, {}}, "nameserver 10.0.2.3\n"},
		{"other servers keep the rest", host, Config{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:0")}}, []netip.Addr{gw4},
			"nameserver 10.0.2.3\nsearch corp.example lan\noptions ndots:2\n"},
		{"other search", host, Config{Search: []string{"a.example"}}, []netip.Addr{gw4}, "nameserver 10.0.2.3\nsearch a.example\noptions ndots:2\n"},
		{"no search", host, Config{Search: []string{"."}}, []netip.Addr{gw4}, "nameserver 10.0.2.3\noptions ndots:2\n"},
		{"other options", host, Config{Options: []string{"use-vc", "timeout:1"}}, []netip.Addr{gw4},
			"nameserver 10.0.2.3\nsearch corp.example lan\noptions use-vc timeout:1\n"},
		{"no line can be smuggled in", host, Config{Search: []string{"a\nnameserver 6.6.6.6"}, Options: []string{"x y"}}, []netip.Addr{gw4}, "nameserver 10.0.2.3\n"},
	} {
		c.cfg.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
		write(t, c.cfg.ResolvConf, c.file)
		r := start(t, c.cfg)
		if got := string(r.GuestConfig(c.gateways...)); got != c.want {
			t.Errorf("%s:\n%swant\n%s", c.name, got, c.want)
		}
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Changes of the host's file are noticed, whatever way the file is changed.
func TestWatchesHostFile(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "other")
	write(t, path, "nameserver 192.0.2.1\nsearch zero.example\n")
	r := start(t, Config{ResolvConf: path})
	guest := func() string { return string(r.GuestConfig(netip.MustParseAddr("10.0.2.3"))) }
	for _, step := range []struct {
		name string
		do   func()
		want string // in the guest's file; empty: Changed must not report a change
	}{
		{"written in place", func() { write(t, path, "nameserver 192.0.2.1\nsearch one.example\n") }, "one.example"},
		{"written again, the same size", func() { write(t, path, "nameserver 192.0.2.1\nsearch two.example\n") }, "two.example"},
		{"replaced by rename", func() {
			write(t, other, "nameserver 192.0.2.1\nsearch three.example\n")
			if err := os.Rename(other, path); err != nil {
				t.Fatal(err)
			}
		}, "three.example"},
		{"replaced by a symlink", func() {
			write(t, other, "nameserver 192.0.2.1\nsearch four.example\n")
			os.Remove(path)
			if err := os.Symlink(other, path); err != nil {
				t.Fatal(err)
			}
		}, "four.example"},
		{"the symlink's target changed", func() { write(t, other, "nameserver 192.0.2.1\nsearch five.example\n") }, "five.example"},
		{"touched", func() { os.Chtimes(path, time.Now(), time.Unix(1, 0)) }, ""},
		{"a FIFO in its place", func() {
			os.Remove(path)
			if err := syscall.Mkfifo(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "nameserver 10.0.2.3\n"},
		{"back again", func() {
			write(t, other, "nameserver 192.0.2.1\nsearch six.example\n")
			if err := os.Rename(other, path); err != nil {
				t.Fatal(err)
			}
		}, "six.example"},
		{"removed", func() { os.Remove(path) }, "nameserver 10.0.2.3\n"},
	} {
		step.do()
		wait := 10 * time.Second
		if step.want == "" {
			wait = 10 * fast.poll
		}
		select {
		case <-r.Changed():
			if step.want == "" {
				t.Errorf("%s: reported as a change", step.name)
			}
		case <-time.After(wait):
			if step.want != "" {
				t.Errorf("%s: not reported as a change", step.name)
			}
		}
		if !strings.Contains(guest(), step.want) || strings.HasPrefix(step.want, "nameserver") && guest() != step.want {
			t.Errorf("%s: the guest's file is %q, want %q", step.name, guest(), step.want)
		}
	}
	if want := []netip.AddrPort{localServer}; !slices.Equal(r.current.Load().servers, want) {
		t.Errorf("without a file the servers are %v, want %v", r.current.Load().servers, want)
	}
}

func TestReloadKeepsQueriesInFlight(t *testing.T) {
	old := newUpstream(t, func(q []byte, tcp bool) [][]byte {
		time.Sleep(300 * time.Millisecond)
		return answersA("192.0.2.1")(q, tcp)
	})
	next := newUpstream(t, answersA("192.0.2.2"))
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, "nameserver 127.0.0.1\n")
	r := start(t, Config{ResolvConf: path})
	r.time.retransmit = time.Second
	// The file cannot contain a port, so the test installs the upstreams directly.
	r.install(&hostConfig{servers: []netip.AddrPort{old.addr}})
	got := make(chan []byte, 1)
	m := question("a.example", mdns.TypeA)
	r.ServeUDP(pack(m), func(a []byte) { got <- a })
	eventually(t, "in flight", func() bool { return old.udp.Load() == 1 })
	r.install(&hostConfig{servers: []netip.AddrPort{next.addr}})
	if a := askMsg(t, r, question("b.example", mdns.TypeA)); firstA(a) != "192.0.2.2" {
		t.Errorf("after the change: %s", firstA(a))
	}
	if a := unpack(t, m, <-got); firstA(a) != "192.0.2.1" {
		t.Errorf("query in flight during the change: %s", firstA(a))
	}
}

// A file that is empty for a moment, while it is being written, does not count as a change.
func TestHalfWrittenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, "nameserver 192.0.2.1\n")
	r, err := newResolver(Config{ResolvConf: path}, timing{poll: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 20 {
		write(t, path, "")
		time.Sleep(7 * time.Millisecond)
		write(t, path, "nameserver 192.0.2.1\n")
		time.Sleep(7 * time.Millisecond)
	}
	select {
	case <-r.Changed():
		t.Errorf("reported as a change to %v", r.current.Load().servers)
	case <-time.After(150 * time.Millisecond):
	}
}

func TestHostsFile(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("fd00::100")
	const block6 = "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	for _, c := range []struct {
		name     string
		hostname string
		addrs    []netip.Addr
		extra    []Host
		want     string
	}{
		{"both families", "box", []netip.Addr{four, six}, nil, "127.0.0.1\tlocalhost\n" + block6 + "10.0.2.100\tbox\nfd00::100\tbox\n"},
		{"IPv4 alone", "box", []netip.Addr{four}, nil, "127.0.0.1\tlocalhost\n10.0.2.100\tbox\n"},
		{"with a domain", "box.example", []netip.Addr{four}, nil, "127.0.0.1\tlocalhost\n10.0.2.100\tbox.example box\n"},
		{"extra lines in their order", "box", []netip.Addr{four},
			[]Host{{six, "z.example"}, {netip.MustParseAddr("10.0.2.2"), "host.docker.internal"}, {four, "a"}},
			"127.0.0.1\tlocalhost\nfd00::100\tz.example\n10.0.2.2\thost.docker.internal\n10.0.2.100\ta\n10.0.2.100\tbox\n"},
		{"nothing", "", nil, nil, "127.0.0.1\tlocalhost\n"},
		{"no line can be smuggled in", "box\n1.2.3.4 bank.example", []netip.Addr{four}, []Host{{four, "a b"}, {four, "#c"}, {netip.Addr{}, "d"}},
			"127.0.0.1\tlocalhost\n"},
	} {
		if got := string(HostsFile(c.hostname, c.addrs, c.extra)); got != c.want {
			t.Errorf("%s:\n%swant\n%s", c.name, got, c.want)
		}
	}
}
