package netns

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RedirectConfig describes a TPROXY redirect: TCP segments that would leave by the uplink are delivered to sockets of ours
// inside the namespace instead. Connection requests (SYN) still leave by the link, where the supervisor judges and dials them.
// For a destination that answers, the supervisor re-injects the SYN on lo, where it reaches a redirect listener; any other
// connection stays on the link and is served by the userspace stack.
type RedirectConfig struct {
	// Uplink is the interface's name.
	Uplink string `json:"uplink"`
	// IPv6 is set if the uplink has IPv6 addresses.
	IPv6 bool `json:"ipv6,omitempty"`
	// MaxBatch is PoolOptions.MaxBatch for the pool of the handles.
	MaxBatch int `json:"-"`
}

// What the redirect owns in a namespace: firewall marks, a routing table with the priorities of its rules, and an nftables
// table. The numbers begin with "rn" so that they collide with nothing: a mark that the command sets for itself is affected
// only if it is one of these.
const (
	// markRedirect is on re-injected SYNs and on the segments that the rules redirect. The policy rule routes it to lo.
	markRedirect = 0x726e0001
	// markTransparent is on transparent sockets that have the address of a client. What the command answers to them inherits it
	// (net.ipv4.tcp_fwmark_accept), and the policy rule routes it to lo.
	markTransparent = 0x726e0003
	// markAccepted is on the redirect listeners and on what they accept, the sockets that stand for a remote server. The
	// kernel's answers to them inherit it (net.ipv4.fwmark_reflect), and the policy rule routes them to lo, except for resets.
	markAccepted = 0x726e0011
	// redirectMask compares the bits in which the three marks are the same: one policy rule is for all.
	redirectMask = ^uint32(markRedirect ^ markTransparent | markRedirect ^ markAccepted)
	// redirectTable is a routing table in which every address is local.
	redirectTable = 0x726e
	// redirectPref is the priority of the policy rule: right after the rule of the local addresses, which has 0.
	redirectPref = 1
	// redirectName is the name of the nftables table.
	redirectName = "rootlessnet"

	// redirectBacklog bounds the connections that wait to be accepted; the kernel cuts it to net.core.somaxconn.
	redirectBacklog = 4096
	// redirectPort is the listeners' port, tcpmux (RFC 1078). Only a socket of the command that listens there on all
	// addresses would collide.
	redirectPort = 1
)

// The listeners' addresses, which belong to no host, so that no connection of the command's can be for them: the IPv4 dummy
// address (RFC 7600) and one of the IPv6 discard prefix (RFC 6666).
var (
	redirectAddr4 = netip.AddrFrom4([4]byte{192, 0, 0, 8})
	redirectAddr6 = netip.AddrFrom16([16]byte{0: 0x01, 15: 1})
)

// LoopbackIndex is the interface index of lo in any namespace.
const LoopbackIndex = 1

// Redirect is a TPROXY redirect that is set up in the namespace of the process. Its methods are for one goroutine.
type Redirect struct {
	// files are the descriptors for the supervisor, see Files.
	files []*os.File
	// held are copies of the listeners. There is one redirect in a namespace at a time, and these addresses are its lock: a
	// second helper must not set up its own, nor use the existing one, before this one has restored the namespace.
	// They are plain descriptors because Go's poller would wake this process for every connection to an os.File.
	held []int
	// undo removes what does not end with a descriptor.
	undo undo

	uplink  uint32 // its interface index
	ipv6    bool
	persist bool
	// forwarding owns the rules for forwarded traffic; nil until AddForwarding.
	forwarding *os.File
}

// NewRedirect sets the redirect up, whole or not at all. persist is set if the namespace ends with this process: the
// nftables tables then stay until it does. The error is an *Error; EADDRINUSE means that the namespace has a redirect already.
func NewRedirect(c *RedirectConfig, persist bool) (r *Redirect, err error) {
	op := func(what string, err error) error {
		return &Error{Op: "redirect TCP: " + what, Err: err, Hint: HintDoctor}
	}
	link, err := netlink.LinkByName(c.Uplink)
	if err != nil {
		return nil, op("find "+c.Uplink, err)
	}
	r = &Redirect{uplink: uint32(link.Attrs().Index), ipv6: c.IPv6, persist: persist}
	made := r // an error returns nil in its place
	var listeners []*os.File
	defer func() {
		if err != nil {
			closeFiles(listeners)
			made.Close()
		}
	}()
	addrs := []netip.Addr{redirectAddr4}
	if c.IPv6 {
		addrs = append(addrs, redirectAddr6)
	}
	for _, a := range addrs {
		l, err := redirectListener(netip.AddrPortFrom(a, redirectPort))
		if err != nil {
			return nil, op(fmt.Sprintf("listen on %v", a), err)
		}
		listeners = append(listeners, l)
		held, err := dupFD(l)
		if err != nil {
			return nil, op("keep a listener", err)
		}
		r.held = append(r.held, held)
	}
	if err := changeSysctls(redirectSysctls(c.IPv6), &r.undo); err != nil {
		return nil, &Error{Op: "redirect TCP", Err: err, Hint: HintDoctor}
	}
	// In a namespace that another program made lo may be down. It stays up afterwards: other programs may rely on it by then.
	if err := setLoopbackUp(); err != nil {
		return nil, op("set lo up", err)
	}
	if err := redirectRoutes(families(c.IPv6), link.Attrs().Index, &r.undo); err != nil {
		return nil, op("routing rule", err)
	}
	packets, err := packetSocket()
	if err != nil {
		return nil, op("packet socket", err)
	}
	r.files = append(r.files, packets)
	pool, err := ServePool()
	if err != nil {
		return nil, op("socket pair", err)
	}
	r.files = append(r.files, pool)
	// The rules come last: from here on the command's connections depend on everything before.
	rules, err := redirectRules(r.uplink, c.IPv6, persist)
	if err != nil {
		return nil, op("nftables", err)
	}
	r.files = append([]*os.File{rules}, append(r.files, listeners...)...)
	return r, nil
}

// Files are the descriptors that make up RedirectHandles, in the order that NewRedirectHandles takes: the owner of the rules,
// the packet socket, the pool's connection, the IPv4 listener and, with IPv6, the IPv6 listener. The caller may close them
// once the supervisor has them.
func (r *Redirect) Files() []*os.File { return r.files }

// AddForwarding adds the rules for TCP that the namespace forwards. Further calls do nothing. The rules live as long as r.
func (r *Redirect) AddForwarding() (err error) {
	if r.forwarding != nil {
		return nil
	}
	var routes undo
	if err := forwardRoutes(r.ipv6, &routes); err != nil {
		routes.run()
		return &Error{Op: "redirect forwarded TCP: routing rule", Err: err, Hint: HintDoctor}
	}
	if r.forwarding, err = forwardRules(r.uplink, r.ipv6, r.persist); err != nil {
		r.forwarding = nil
		routes.run()
		return &Error{Op: "redirect forwarded TCP: nftables", Err: err, Hint: HintDoctor}
	}
	r.undo.add(routes.run)
	return nil
}

// Close restores the namespace to its state before NewRedirect, except for what the supervisor's descriptors still hold.
func (r *Redirect) Close() {
	closeFiles(r.files) // they may have been closed after they were sent; an os.File allows a second Close
	if r.forwarding != nil {
		r.forwarding.Close()
	}
	r.undo.run()
	closeFDs(r.held)
	r.held = nil // the numbers may be other files' from now on
}

// RedirectHandles are the supervisor's side of a Redirect. The owner closes each of them.
type RedirectHandles struct {
	// Rules keeps the nftables rules: the kernel removes them when the last copy is closed.
	Rules *os.File
	// Packets is an AF_PACKET socket on which the supervisor re-injects SYNs: a frame written to it, with an Ethernet header
	// of zeroes, arrives on lo (interface index LoopbackIndex) with markRedirect, and so at a listener.
	Packets *os.File
	// Listeners accept the connections of re-injected SYNs: one for IPv4 and, with IPv6, a second. They are non-blocking. The
	// local address of an accepted socket is the address that the command connected to. Any process inside that can send on
	// lo can connect to them, too.
	Listeners []*os.File
	// Pool has the transparent sockets for connections into the namespace.
	Pool *Pool
}

// Close closes all of them.
func (h *RedirectHandles) Close() {
	h.Rules.Close()
	h.Packets.Close()
	closeFiles(h.Listeners)
	h.Pool.Close()
}

// NewRedirectHandles takes over the descriptors of Redirect.Files; on an error they are closed.
func NewRedirectHandles(files []*os.File, c RedirectConfig) (*RedirectHandles, error) {
	const rules, packets, pool, listeners = 0, 1, 2, 3
	p, err := NewPool(files[pool], PoolOptions{IPv6: c.IPv6, MaxBatch: c.MaxBatch})
	if err != nil {
		closeFiles(files)
		return nil, &Error{Op: "redirect TCP", Err: err}
	}
	return &RedirectHandles{Rules: files[rules], Packets: files[packets], Listeners: files[listeners:], Pool: p}, nil
}

// packetSocket opens a socket that sends to lo with markRedirect and, with protocol 0, receives nothing.
func packetSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, markRedirect); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}
