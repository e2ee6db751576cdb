package netns

import (
	"errors"
	"fmt"
	"os"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

const (
	devNetTun = "/dev/net/tun"

	// vnetHeaderLen is sizeof(struct virtio_net_hdr), without num_buffers.
	vnetHeaderLen = 10

	// TUN_F_USO4 and TUN_F_USO6 (include/uapi/linux/if_tun.h, since Linux 6.2).
	tunUSO4 = 0x20
	tunUSO6 = 0x40
)

// openTAP creates a TAP with virtio-net headers and the offloads that the kernel has.
func openTAP(l *Link) (*os.File, LinkResult, error) {
	var res LinkResult
	fd, err := unix.Open(devNetTun, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, res, fmt.Errorf("%s: %w", devNetTun, err)
	}
	fail := func(what string, err error) (*os.File, LinkResult, error) {
		unix.Close(fd)
		return nil, LinkResult{}, fmt.Errorf("%s: %w", what, err)
	}
	req, err := unix.NewIfreq(l.Name)
	if err != nil {
		return fail("interface name", err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fail("TUNSETIFF", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeaderLen); err != nil {
		return fail("TUNSETVNETHDRSZ", err)
	}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	res.CSum, res.TSO, res.USO = true, true, true
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|tunUSO4|tunUSO6) != nil {
		res.USO = false
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso); err != nil {
			return fail("TUNSETOFFLOAD", err)
		}
	}
	return os.NewFile(uintptr(fd), l.Name), res, nil
}

// persistTAP makes a TAP live as long as its namespace, which ends with the sandbox. Otherwise the kernel would remove it at
// the close of the last descriptor, which takes the closing process 25 ms (synchronize_net and rcu_barrier); at the end of the
// namespace no process waits for that. Where the kernel refuses, the sandbox ends that much later.
func (d *Device) persistTAP() {
	if d.Kind != KindTAP && d.Kind != KindTAPPlain {
		return
	}
	if c, err := d.File.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
	}
}

// openPlainTAP creates a TAP that carries bare frames.
func openPlainTAP(l *Link) (*os.File, LinkResult, error) {
	ifce, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: l.Name},
	})
	if err != nil {
		return nil, LinkResult{}, err
	}
	defer ifce.Close()
	f, ok := ifce.ReadWriteCloser.(*os.File)
	if !ok {
		return nil, LinkResult{}, errors.New("water: not a file")
	}
	// The library does not set close-on-exec; the copy has it, and keeps the device.
	fd, err := dupFD(f)
	if err != nil {
		return nil, LinkResult{}, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, LinkResult{}, err
	}
	return os.NewFile(uintptr(fd), l.Name), LinkResult{}, nil
}
