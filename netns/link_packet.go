package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// farName is the name of the veth pair's far end, the only interface of its namespace besides lo.
	farName = "far0"
	// farMTU lets the far end send any frame: ETH_MAX_MTU (include/uapi/linux/if_ether.h).
	farMTU = 65535
	// packetRcvbuf is the buffer size in bytes, which the kernel cuts to net.core.rmem_max and wmem_max: three frames of 64 KiB
	// fill the default.
	packetRcvbuf = 8 << 20
	// Frames with UDP segmentation offload (USO) cross a packet socket from Linux 6.2 on (include/linux/virtio_net.h); before,
	// reading one fails.
	usoMajor, usoMinor = 6, 2
)

// openPacket makes a veth pair, the near end in the process's namespace and the far end in a second network namespace of the
// same user namespace, and opens a packet socket on the far end. The second namespace lives as long as the socket.
func openPacket(l *Link) (*os.File, LinkResult, error) {
	near, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, LinkResult{}, err
	}
	defer near.Close()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, in the other namespace
		fd, err := openFarEnd(l, int(near.Fd()))
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, LinkResult{}, r.err
	}
	uso := kernelAtLeast(usoMajor, usoMinor)
	return os.NewFile(uintptr(r.fd), l.Name), LinkResult{CSum: true, TSO: true, USO: uso}, nil
}

// openFarEnd moves the calling thread into a new network namespace, makes the veth pair with its near end in the namespace
// near, and returns the packet socket.
func openFarEnd(l *Link, near int) (fd int, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("second network namespace: %w", err)
	}
	// The far end's kernel must send nothing of its own: no address, no neighbour discovery, no ARP. ENOENT: the kernel has no
	// IPv6.
	if err := writeSysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil && !errors.Is(err, unix.ENOENT) {
		return -1, fmt.Errorf("disable IPv6 on the far end: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return -1, err
	}
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = farName, farMTU
	attrs.TxQLen = -1
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: l.Name, PeerHardwareAddr: l.MAC, PeerNamespace: netlink.NsFd(near)}
	if err := nl.LinkAdd(pair); err != nil {
		return -1, fmt.Errorf("veth pair: %w", err)
	}
	far, err := nl.LinkByName(farName)
	if err != nil {
		return -1, err
	}
	if err := nl.LinkSetARPOff(far); err != nil {
		return -1, fmt.Errorf("far end: %w", err)
	}
	// Protocol 0 until it is bound, so that it receives no frame of another interface.
	sock, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(sock)
		}
	}()
	for _, o := range []struct {
		name       string
		level, opt int
		value      int
	}{
		{"PACKET_VNET_HDR", unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{"PACKET_IGNORE_OUTGOING", unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{"PACKET_QDISC_BYPASS", unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1},
		{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, packetRcvbuf},
		{"SO_SNDBUF", unix.SOL_SOCKET, unix.SO_SNDBUF, packetRcvbuf},
	} {
		if err := unix.SetsockoptInt(sock, o.level, o.opt, o.value); err != nil {
			return -1, fmt.Errorf("%s: %w", o.name, err)
		}
	}
	// The interface is set up before the socket is bound: bound to one that is down, the first read is ENETDOWN. No frame
	// arrives yet, because the near end is down.
	if err = nl.LinkSetUp(far); err != nil {
		return -1, fmt.Errorf("far end: %w", err)
	}
	const ethPAll = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // network byte order
	sll := &unix.SockaddrLinklayer{Protocol: ethPAll & 0xffff, Ifindex: far.Attrs().Index}
	if err = unix.Bind(sock, sll); err != nil {
		return -1, fmt.Errorf("bind the packet socket: %w", err)
	}
	return sock, nil
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || (a == major && b >= minor)
}
