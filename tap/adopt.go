package tap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Adopt examines a descriptor that another program opened, a TAP device with IFF_NO_PI or a socket that preserves message
// boundaries, and returns the Info with which FromFD accepts it. On a TAP device with IFF_VNET_HDR it sets the header size and the
// offloads to what this package supports. mtu is in bytes, as in Info. f remains the caller's. Errors are *Error.
func Adopt(f *os.File, mtu int) (Info, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return Info{}, &Error{"adopt", err}
	}
	info := Info{MTU: mtu}
	var ierr error
	err = conn.Control(func(fd uintptr) {
		if typ, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
			if info.Kind = KindSocket; typ != unix.SOCK_SEQPACKET && typ != unix.SOCK_DGRAM {
				ierr = unix.EPROTOTYPE
			}
			return
		}
		ierr = adoptTAP(int(fd), &info)
	})
	if err := errors.Join(err, ierr); err != nil {
		return Info{}, &Error{"adopt", err}
	}
	return info, nil
}

// TUN_F_USO4 and TUN_F_USO6 (include/uapi/linux/if_tun.h, since Linux 6.2).
const tunUSO = 0x20 | 0x40

func adoptTAP(fd int, info *Info) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return fmt.Errorf("TUNGETIFF: %w", err)
	}
	info.Name, info.Kind = req.Name(), KindTAPPlain
	flags := req.Uint16()
	if flags&unix.IFF_VNET_HDR != 0 {
		info.Kind, info.CSum, info.TSO, info.USO = KindTAP, true, true, true
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
			return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
		}
		const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|tunUSO) != nil {
			info.USO = false
			if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso); err != nil {
				return fmt.Errorf("TUNSETOFFLOAD: %w", err)
			}
		}
	}
	info.MAC = hardwareAddr(fd, info.Name)
	return nil
}

// hardwareAddr returns the MAC address of a TAP device's interface, or nil if the kernel refuses. x/sys has no accessor for
// ifr_hwaddr: after the name comes a struct sockaddr, two bytes of family and then the address (netdevice(7)).
func hardwareAddr(fd int, name string) net.HardwareAddr {
	var r struct {
		name   [unix.IFNAMSIZ]byte
		family uint16
		data   [22]byte
	}
	copy(r.name[:unix.IFNAMSIZ-1], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&r))); e != 0 {
		return nil
	}
	return append(net.HardwareAddr(nil), r.data[:6]...)
}
