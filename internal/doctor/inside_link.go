package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// Bits of TUNSETOFFLOAD (include/uapi/linux/if_tun.h).
const (
	offloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	offloadUDP = 0x20 | 0x40 // TUN_F_USO4, TUN_F_USO6
)

// vnetHeaderLen is the size of struct virtio_net_hdr without num_buffers (include/uapi/linux/virtio_net.h).
const vnetHeaderLen = 10

var tapNames = []string{"tun-device", "tap-plain", "tap-vnet-header", "tap-offload", "tap-uso"}

// probeTAP opens a TAP device step by step, as package tap does, and returns the findings of all tapNames.
func probeTAP() map[string]finding {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		f := failed("open "+tunPath, err)
		f.Fix = tunFix(err)
		found := same(tapNames, finding{Status: Untried, Detail: "no " + tunPath + " to test it with", Fix: f.Fix})
		found["tun-device"] = f
		return found
	}
	found := same(tapNames, finding{Status: Untried, Detail: "no TAP with virtio-net headers to test it on"})
	found["tun-device"] = okf("%s can be opened", tunPath)

	plain, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		err = setIff(plain, "plain0", unix.IFF_TAP|unix.IFF_NO_PI)
		unix.Close(plain)
	}
	if err != nil {
		found["tap-plain"] = failed("TUNSETIFF", err)
	} else {
		found["tap-plain"] = okf("a TAP can be created")
	}

	defer unix.Close(fd)
	if err := setIff(fd, "tap0", unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR); err != nil {
		found["tap-vnet-header"] = failed("TUNSETIFF IFF_VNET_HDR", err)
		return found
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeaderLen); err != nil {
		found["tap-vnet-header"] = failed("TUNSETVNETHDRSZ", err)
		return found
	}
	found["tap-vnet-header"] = okf("a TAP with virtio-net headers can be created")
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP); err != nil {
		found["tap-offload"] = failed("TUNSETOFFLOAD CSUM|TSO4|TSO6|TSO_ECN", err)
		return found
	}
	found["tap-offload"] = okf("checksum and TCP segmentation offload accepted")
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP|offloadUDP); err != nil {
		found["tap-uso"] = failed("TUNSETOFFLOAD USO4|USO6", err)
		return found
	}
	found["tap-uso"] = okf("UDP segmentation offload accepted")
	return found
}

func tunFix(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "sudo chmod 0666 " + tunPath
	}
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("container") != "" {
		return "podman run --device " + tunPath + " … # for the surrounding container"
	}
	return "sudo modprobe tun"
}

func setIff(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

// testEtherType is the local experimental EtherType 1 (IEEE 802), which no protocol of the kernel handles.
const testEtherType = 0x88b5

// disableIPv6 keeps the kernel from sending router solicitations and neighbour discovery from new links.
const disableIPv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6"

// probePacketLink creates a veth pair whose far end is in a second network namespace, and sends a frame in each direction between
// the near end and a packet socket with virtio-net headers on the far end.
func probePacketLink() finding {
	near, err := currentNetNS()
	if err != nil {
		return failed("open the namespace", err)
	}
	defer near.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return failed("second network namespace", err)
	}
	far, err := currentNetNS()
	if err != nil {
		return failed("open the namespace", err)
	}
	defer far.Close()
	// The far end's kernel must not send IPv6 packets by itself, so the sysctl must be writable. Without IPv6 it does not exist.
	if err := os.WriteFile(disableIPv6, []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f := failed("write "+disableIPv6, err)
		f.Fix = writableSys
		return f
	}
	if err := unix.Setns(int(near.Fd()), unix.CLONE_NEWNET); err != nil {
		return failed("setns", err)
	}

	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far",
		PeerNamespace: netlink.NsFd(far.Fd())}); err != nil {
		return failed("veth pair", err)
	}
	if err := setUp("eth0"); err != nil {
		return failed("veth up", err)
	}
	guest, err := packetSocket("eth0", false)
	if err != nil {
		return failed("packet socket", err)
	}
	defer unix.Close(guest)

	if err := unix.Setns(int(far.Fd()), unix.CLONE_NEWNET); err != nil {
		return failed("setns", err)
	}
	if err := setUp("far"); err != nil {
		return failed("far end up", err)
	}
	ours, err := packetSocket("far", true)
	if err != nil {
		return failed("packet socket with virtio-net headers", err)
	}
	defer unix.Close(ours)

	frame := make([]byte, 60)
	copy(frame, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01")
	binary.BigEndian.PutUint16(frame[12:], testEtherType)
	withHeader := append(make([]byte, vnetHeaderLen), frame...)
	if err := passes(guest, frame, ours, withHeader); err != nil {
		return failed("frame to the far end", err)
	}
	if err := passes(ours, withHeader, guest, frame); err != nil {
		return failed("frame from the far end", err)
	}
	return okf("a veth pair and a packet socket with virtio-net headers carry frames both ways")
}

// currentNetNS opens the network namespace of the calling thread.
func currentNetNS() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// packetSocket opens a raw packet socket on a link, for frames with testEtherType; with header they have virtio-net headers.
func packetSocket(link string, header bool) (fd int, err error) {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return -1, err
	}
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	opts := []int{unix.PACKET_IGNORE_OUTGOING}
	if header {
		opts = append(opts, unix.PACKET_VNET_HDR, unix.PACKET_QDISC_BYPASS)
	}
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("option %d: %w", o, err)
		}
	}
	proto := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, testEtherType))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: l.Attrs().Index}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// passes sends a frame on one socket, several times if necessary, until the other socket receives it, and compares it with want. A
// link that was just set up may drop the first frames.
func passes(from int, sent []byte, to int, want []byte) error {
	const tries, pause = 20, 20 * time.Millisecond
	buf := make([]byte, 2048)
	var last error = unix.ETIMEDOUT
	for range tries {
		if _, err := unix.Write(from, sent); err != nil && err != unix.ENETDOWN && err != unix.ENOBUFS {
			last = err
		}
		if readable(to, pause) != nil {
			continue
		}
		n, err := unix.Read(to, buf)
		if err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("%d bytes were received that differ from the %d expected", n, len(want))
		}
		return nil
	}
	return last
}

// readable waits until fd has data to read or an error (POLLERR). It returns ETIMEDOUT after d.
func readable(fd int, d time.Duration) error {
	deadline := time.Now().Add(d)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n > 0:
			return nil
		default:
			return unix.ETIMEDOUT
		}
	}
}
