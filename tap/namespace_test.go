package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/skip"
	"rootlessnet/tap"
)

// inside is the environment variable of the test process that runs in its own namespaces.
const inside = "ROOTLESSNET_TAP_INSIDE"

const guestName = "eth0"

var (
	guestMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	ourMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	guestIP  = [4]byte{10, 0, 2, 100}
	ourIP    = [4]byte{10, 0, 2, 2}
)

// enter runs the test again in a child process, in a new user and network namespace in which it is root. It returns true in the
// child; in the parent it reports the child's result and returns false.
func enter(t testing.TB) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	name := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	args := []string{"-test.run=" + name, "-test.v"}
	if _, ok := t.(*testing.B); ok {
		args = []string{"-test.run=^$", "-test.bench=" + name}
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		skip.Missing(t, "no user namespace: %v", err)
	case err != nil:
		t.Fatalf("%s", out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("%s", out)
	}
	if _, ok := t.(*testing.B); ok {
		os.Stdout.Write(out)
		t.SkipNow() // the child has measured
	}
	t.Logf("%s", out)
	return false
}

// link is a Device and the guest's interface, which is up and has an address and a permanent neighbour entry for our address.
type link struct {
	tap.Device
	guest netlink.Link
}

func (l *link) up(t testing.TB) {
	t.Helper()
	if err := netlink.LinkSetUp(l.guest); err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: l.guest.Attrs().Index, State: unix.NUD_PERMANENT, IP: ourIP[:], HardwareAddr: ourMAC,
	}); err != nil {
		t.Fatal(err)
	}
}

// newLink makes a link of the given kind in the current namespace.
func newLink(t testing.TB, kind tap.Kind) *link {
	t.Helper()
	fd := openKind(t, kind)
	vnet := kind != tap.KindTAPPlain
	d, err := tap.FromFD(os.NewFile(uintptr(fd), "link"), tap.Info{
		Kind: kind, Name: guestName, MAC: guestMAC, MTU: 65520, CSum: vnet, TSO: vnet,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return configure(t, d)
}

func openKind(t testing.TB, kind tap.Kind) int {
	t.Helper()
	os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0) // where there is IPv6, the kernel would send frames of its own
	if kind == tap.KindPacket {
		return openPacket(t)
	}
	return openTAP(t, kind == tap.KindTAP)
}

// configure sets addresses and MTU of the guest's interface and sets it up. d may be nil.
func configure(t testing.TB, d tap.Device) *link {
	t.Helper()
	guest, err := netlink.LinkByName(guestName)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		netlink.LinkSetHardwareAddr(guest, guestMAC),
		netlink.LinkSetMTU(guest, 65520),
		netlink.AddrAdd(guest, &netlink.Addr{IPNet: &net.IPNet{IP: guestIP[:], Mask: net.CIDRMask(24, 32)}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l := &link{d, guest}
	l.up(t)
	return l
}

func openTAP(t testing.TB, vnet bool) int {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if os.Getenv("TUN_MODE") == "0600" {
			t.Skipf("NOT TESTED: /dev/net/tun: %v, as TUN_MODE=0600 requests", err)
		}
		skip.Missing(t, "/dev/net/tun: %v", err)
	}
	req, _ := unix.NewIfreq(guestName)
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if vnet {
		flags |= unix.IFF_VNET_HDR
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatalf("TUNSETIFF: %v", err)
	}
	if vnet {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
			t.Fatalf("TUNSETOFFLOAD: %v", err)
		}
	}
	return fd
}

// openPacket makes a veth pair whose far end is alone in a second network namespace, which lives as long as the packet socket
// that openPacket returns.
func openPacket(t testing.TB) int {
	t.Helper()
	near, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the other namespace and must end with the goroutine
		fd, err := farEnd(near)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		skip.Missing(t, "packet link: %v", r.err)
	}
	return r.fd
}

func farEnd(near *os.File) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, err
	}
	os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "far0", 65535
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: guestName, PeerNamespace: netlink.NsFd(near.Fd())}); err != nil {
		return -1, err
	}
	far, err := netlink.LinkByName("far0")
	if err != nil {
		return -1, err
	}
	if err := netlink.LinkSetARPOff(far); err != nil {
		return -1, err
	}
	if err := netlink.LinkSetUp(far); err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, opt := range []int{unix.PACKET_VNET_HDR, unix.PACKET_IGNORE_OUTGOING, unix.PACKET_QDISC_BYPASS} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, opt, 1); err != nil {
			return -1, err
		}
	}
	for _, opt := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 8<<20); err != nil {
			return -1, err
		}
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL << 8 & 0xffff, Ifindex: far.Attrs().Index})
}

// guestSocket returns a UDP socket of the guest's kernel, connected to port 9 of our address.
func guestSocket(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	tv := unix.NsecToTimeval(int64(3 * time.Second))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: guestIP}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: ourIP, Port: 9}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// isUDP reports whether b is an IPv4 UDP frame.
func isUDP(b []byte) bool {
	return len(b) >= 42 && binary.BigEndian.Uint16(b[12:]) == 0x0800 && b[23] == unix.IPPROTO_UDP
}

// reflect turns a UDP frame into its response in place by swapping MAC addresses, IP addresses and ports. Checksums, including
// partial ones, are not affected by the swap.
func reflect(f *tap.Frame, b []byte) tap.Frame {
	var x [6]byte
	copy(x[:], b[0:6])
	copy(b[0:6], b[6:12])
	copy(b[6:12], x[:])
	for _, at := range []struct{ a, b, n int }{{26, 30, 4}, {34, 36, 2}} {
		copy(x[:], b[at.a:at.a+at.n])
		copy(b[at.a:at.a+at.n], b[at.b:at.b+at.n])
		copy(b[at.b:at.b+at.n], x[:at.n])
	}
	return tap.Frame{Header: f.Header, Bufs: [][]byte{b}}
}

// echo sends the guest's UDP frames back until the device is closed. Like the data plane it reads in batches, with one large buffer
// and a small tail for each frame.
func echo(d tap.Device, batch int) error {
	in := make([]tap.Frame, batch)
	for i := range in {
		in[i].Bufs = [][]byte{make([]byte, 65536), make([]byte, 128)}
	}
	out := make([]tap.Frame, 0, batch)
	for {
		n, err := d.ReadFrames(in)
		if err != nil {
			return err
		}
		out = out[:0]
		for i := range in[:n] {
			f := &in[i]
			if b := f.Bufs[0][:min(f.Len, 65536)]; isUDP(b) {
				out = append(out, reflect(f, b))
			}
		}
		if _, err := d.WriteFrames(out); err != nil {
			return err
		}
	}
}

// read is unix.Read, repeated when a signal of Go's runtime interrupts it: the kernel does not restart a read of a socket that
// has a timeout.
func read(fd int, b []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

// exchange sends size bytes and reports whether the same bytes came back.
func exchange(t testing.TB, fd int, size int) bool {
	t.Helper()
	b, got := bytes.Repeat([]byte{byte(size)}, size), make([]byte, size+1)
	if _, err := unix.Write(fd, b); err != nil {
		t.Logf("send: %v", err)
		return false
	}
	n, err := read(fd, got)
	if err != nil || !bytes.Equal(got[:n], b) {
		t.Logf("%d bytes came back as %d: %v", size, n, err)
		return false
	}
	return true
}

// eachKind runs fn in fresh namespaces for every kind of link.
func eachKind(t *testing.T, fn func(t *testing.T, kind tap.Kind)) {
	for _, kind := range []tap.Kind{tap.KindTAP, tap.KindTAPPlain, tap.KindPacket} {
		t.Run(strings.ReplaceAll(string(kind), "-", "_"), func(t *testing.T) {
			if enter(t) {
				fn(t, kind)
			}
		})
	}
}
