package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/nettest/cmdtest"
	"rootlessnet/internal/slirp"
)

func TestMain(m *testing.M) {
	cmdtest.Main(main)
	os.Exit(m.Run())
}

func start(t *testing.T, args ...string) *cmdtest.Process {
	t.Helper()
	return cmdtest.Start(t, "slirp4netns", "", args...)
}

// TestHelp: Podman looks in the output of --help for the options that it wants to use.
func TestHelp(t *testing.T) {
	for _, flag := range []string{"-h", "--help"} {
		r := start(t, flag).Wait()
		if r.Code != 0 || r.Stderr != "" {
			t.Errorf("%s: %+v", flag, r)
		}
		for _, option := range []string{"--disable-host-loopback", "--mtu", "--enable-sandbox", "--enable-seccomp", "--cidr", "--outbound-addr", "--enable-ipv6", "--api-socket", "--netns-type"} {
			if !strings.Contains(r.Stdout, option) {
				t.Errorf("%s does not name %s", flag, option)
			}
		}
	}
}

// TestVersion: callers read which options are understood from the line SLIRP_CONFIG_VERSION_MAX.
func TestVersion(t *testing.T) {
	for _, flag := range []string{"-v", "--version"} {
		r := start(t, flag).Wait()
		if r.Code != 0 || !strings.HasPrefix(r.Stdout, "slirp4netns version ") || !strings.Contains(r.Stdout, "\nSLIRP_CONFIG_VERSION_MAX: 4\n") {
			t.Errorf("%s: %+v", flag, r)
		}
	}
}

// TestBadArguments: the error is on standard error, the usage on standard output, and the exit status 1.
func TestBadArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "needed"},
		{[]string{"1"}, "TAP"},
		{[]string{"--bogus", "1", "tap0"}, "slirp4netns: unrecognized option '--bogus'"},
		{[]string{"one", "tap0"}, "PID must be a positive integer"},
		{[]string{"--mtu", "65522", "1", "tap0"}, "MTU must be a positive integer (< 65522)"},
		{[]string{"--cidr=10.0.2.0/26", "1", "tap0"}, "prefix length needs to be 1-25"},
		{[]string{"1", "--cidr=nonsense", "tap0"}, "invalid CIDR"}, // an option after an argument
		{[]string{"--netns-type=path", "/nonexistent", "tap0"}, "existing path expected"},
	} {
		r := start(t, c.args...).Wait()
		if r.Code != 1 || !strings.Contains(r.Stderr, c.want) || r.Stdout != slirp.Usage {
			t.Errorf("%q: exit status %d, %q; want 1, %q and the usage on standard output", c.args, r.Code, r.Stderr, c.want)
		}
	}
}

// TestCannotStart: the caller sees exit status 1 and a ready descriptor that is closed without a byte.
func TestCannotStart(t *testing.T) {
	notNamespace := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notNamespace, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-c", "-e", "3", "-r", "4", "4194303", "tap0"}, "no such process"},
		{[]string{"-c", "-e", "3", "-r", "4", "--netns-type=path", notNamespace, "tap0"}, "not a namespace of this type"},
		{[]string{"-c", "-e", "99", "-r", "4", "4194303", "tap0"}, "descriptor 99, passed by the caller: bad file descriptor"},
		{[]string{"-c", "-e", "3", "-r", "99", "4194303", "tap0"}, "descriptor 99, passed by the caller: bad file descriptor"},
	} {
		p := start(t, c.args...)
		if got := p.WaitReady(); got != "" {
			t.Errorf("%q: ready: %q", c.args, got)
		}
		r := p.Wait()
		if r.Code != 1 || !strings.HasPrefix(r.Stderr, "slirp4netns: ") || !strings.Contains(r.Stderr, c.want) || r.Stdout != "" {
			t.Errorf("%q: %+v; want exit status 1 and %q", c.args, r, c.want)
		}
	}
}

// TestDeprecatedOptions: they work, and a warning on standard output names the new option.
func TestDeprecatedOptions(t *testing.T) {
	r := start(t, "--no-host-loopback", "--create-sandbox", "-r", "4", "4194303", "tap0").Wait()
	for _, want := range []string{"--disable-host-loopback", "--enable-sandbox"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("%+v; want a warning that names %s", r, want)
		}
	}
}

// TestVirtualMachine: with --target-type=bess the program waits for a virtual machine at a socket, which needs no namespace.
// It ends with status 0 at the exit descriptor's end, or by a signal, and removes the socket.
func TestVirtualMachine(t *testing.T) {
	for name, end := range map[string]func(*cmdtest.Process){
		"exit descriptor": (*cmdtest.Process).CloseExit,
		"SIGTERM":         func(p *cmdtest.Process) { p.Signal(syscall.SIGTERM) },
		"SIGINT":          func(p *cmdtest.Process) { p.Signal(syscall.SIGINT) },
		"SIGHUP":          func(p *cmdtest.Process) { p.Signal(syscall.SIGHUP) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "s") // a short path, for the address of a unix socket
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "vm")
			// The socket of a program that was killed is replaced.
			old, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			old.SetUnlinkOnClose(false)
			old.Close()
			p := start(t, "-e", "3", "-r", "4", "--target-type=bess", path)
			// A socket of another type cannot connect to a listening one, so this is no virtual machine yet.
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				_, err := net.Dial("unix", path)
				if errors.Is(err, unix.EPROTOTYPE) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("no socket listens: %v", err)
				}
			}
			if !p.Running(100 * time.Millisecond) {
				t.Fatalf("ended by itself: %+v", p.Wait())
			}
			end(p)
			if got := p.WaitReady(); got != "" {
				t.Errorf("ready without a virtual machine: %q", got)
			}
			if r := p.Wait(); r != (cmdtest.Result{}) {
				t.Errorf("%+v", r)
			}
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

// TestWatchExit: any event on the exit descriptor counts: data, the other end's close, a file, which is always readable.
func TestWatchExit(t *testing.T) {
	if c, err := watchExit(nil); c != nil || err != nil {
		t.Errorf("without a descriptor: %v, %v", c, err)
	}
	events := map[string]func(*os.File){
		"close": func(w *os.File) { w.Close() },
		"data":  func(w *os.File) { _, _ = io.WriteString(w, "x") },
	}
	for name, event := range events {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		ended, err := watchExit(r)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-ended:
			t.Fatalf("%s: an event before there was one", name)
		case <-time.After(50 * time.Millisecond):
		}
		event(w)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: no event", name)
		}
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ended, err := watchExit(null)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("/dev/null: no event")
	}
}

func parse(t *testing.T, line string) *slirp.Options {
	t.Helper()
	o, err := slirp.Parse("slirp4netns", strings.Fields(line), slirp.InterfaceAddress)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return o
}

func TestTarget(t *testing.T) {
	for line, want := range map[string]rootlessnet.Target{
		"77 tap0": {PID: 77},
		"--netns-type=path /proc/self/ns/net tap0":                                  {NetNS: "/proc/self/ns/net"},
		"--netns-type=path --userns-path=/proc/self/ns/user /proc/self/ns/net tap0": {NetNS: "/proc/self/ns/net", UserNS: "/proc/self/ns/user"},
		"--netns-type=tapfd 5": {TAP: os.Stdin},
	} {
		var tap *os.File
		if want.TAP != nil {
			tap = os.Stdin
		}
		if got := target(parse(t, line), tap); got != want {
			t.Errorf("%s: %+v, want %+v", line, got, want)
		}
	}
}

// TestConfig: the addresses of the original, and what the options change.
func TestConfig(t *testing.T) {
	special := func(c rootlessnet.Config, addr string) rootlessnet.SpecialAddr {
		t.Helper()
		i := slices.IndexFunc(c.Plan.Special, func(s rootlessnet.SpecialAddr) bool { return s.Addr == netip.MustParseAddr(addr) })
		if i < 0 {
			t.Fatalf("%s is no special address: %+v", addr, c.Plan.Special)
		}
		return c.Plan.Special[i]
	}
	plain := config(parse(t, "-c --mtu=1400 --enable-sandbox 77 tap0"), nil)
	if plain.IfName != "tap0" || plain.MTU != 1400 || !plain.Configure || !plain.Confine || !plain.AllowMetadata || !plain.HostLoopback.All {
		t.Errorf("%+v", plain)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24")}; !slices.Equal(plain.Plan.Addrs, want) || plain.Plan.Gateway != netip.MustParseAddr("10.0.2.2") || plain.Plan.Gateway6.IsValid() {
		t.Errorf("addresses %v, gateways %v and %v", plain.Plan.Addrs, plain.Plan.Gateway, plain.Plan.Gateway6)
	}
	if !special(plain, "10.0.2.3").DNS {
		t.Error("10.0.2.3 is no name server")
	}
	closed := config(parse(t, "--disable-host-loopback --disable-dns -6 --cidr=10.77.0.0/16 77 tap0"), nil)
	if closed.Configure || closed.HostLoopback.All {
		t.Errorf("%+v", closed)
	}
	for open, addr := range map[string]string{"10.0.2.2": "10.77.0.2", "10.0.2.3": "10.77.0.3"} {
		if s := special(closed, addr); s.DNS || s.To == special(plain, open).To {
			t.Errorf("%s is not closed: %+v", addr, s)
		}
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.77.0.100/16"), netip.PrefixFrom(slirp.Guest6, 64)}
	if !slices.Equal(closed.Plan.Addrs, want) || closed.Plan.Gateway6 != slirp.Gateway6 {
		t.Errorf("addresses %v, gateway %v", closed.Plan.Addrs, closed.Plan.Gateway6)
	}
}

// TestBindsLowPorts: an ordinary user's process does not.
func TestBindsLowPorts(t *testing.T) {
	if unix.Geteuid() != 0 && bindsLowPorts() {
		t.Error("an ordinary user's process counts as one that may bind every port")
	}
}
