package userns

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

// openTAP creates a TAP with virtio-net headers and as many offloads as the kernel has.
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

// keepTAP has the device live as long as its namespace, where that is ours: to take it down when the last descriptor is
// closed costs the one who closes it 25 ms (synchronize_net and rcu_barrier), and the end of the namespace does it anyway,
// with nobody waiting. A kernel that refuses has a slower end.
func (d *device) keepTAP() {
	if d.kind != KindTAP && d.kind != KindTAPPlain {
		return
	}
	if c, err := d.file.SyscallConn(); err == nil {
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
	// water does not set close-on-exec; our copy does. The device lives on by it.
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, LinkResult{}, err
	}
	var fd int
	var derr error
	if err := conn.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, LinkResult{}, err
	}
	if derr != nil {
		return nil, LinkResult{}, derr
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, LinkResult{}, err
	}
	return os.NewFile(uintptr(fd), l.Name), LinkResult{}, nil
}
