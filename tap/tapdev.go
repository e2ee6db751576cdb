package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
)

// Error is a failure of a Device. Err is or wraps a syscall.Errno.
type Error struct {
	Op  string // "adopt", "open" or "read"
	Err error
}

func (e *Error) Error() string { return "tap: " + e.Op + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// fdDevice is a Device of any Kind, on a file descriptor.
type fdDevice struct {
	info   Info
	vnet   bool // a virtio-net header precedes each frame
	packet bool // the descriptor is a packet socket
	file   *os.File
	conn   syscall.RawConn
	closed atomic.Bool
	rx     *rxState
	group  *spin.Group
	member atomic.Pointer[spin.Member] // set by Serve
	tx     sync.Pool                   // of *txState

	rxFrames, rxBytes, rxDropped atomic.Uint64
	txFrames, txBytes, txDropped atomic.Uint64
}

var (
	_ Device     = (*fdDevice)(nil)
	_ Poller     = (*fdDevice)(nil)
	_ BusyPoller = (*fdDevice)(nil)
)

// FromFD makes a Device of fd, which must be of info.Kind: for KindTAP a TAP device attached with IFF_NO_PI and IFF_VNET_HDR; for
// KindTAPPlain one with IFF_NO_PI only; for KindPacket a bound packet socket with PACKET_VNET_HDR; for KindSocket a socket that
// Adopt accepted. The rest of info is kept as given; for KindTAPPlain and KindSocket the offloads must be off. FromFD takes fd
// over and closes it, also on error. Errors are *Error.
func FromFD(fd *os.File, info Info) (Device, error) {
	// A duplicate is needed because Go's poller may have registered fd before TUNSETIFF, in which case it would never report
	// it readable, and because an os.File that was created in blocking mode stays in it.
	file, err := pollable(fd)
	if err != nil {
		return nil, &Error{"open", err}
	}
	d, err := newFDDevice(file, info)
	if err == nil {
		err = d.verify()
	}
	if err != nil {
		file.Close()
		return nil, &Error{"open", err}
	}
	return d, nil
}

func pollable(fd *os.File) (*os.File, error) {
	defer fd.Close()
	conn, err := fd.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup int
	var derr error
	err = conn.Control(func(n uintptr) { dup, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, derr); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		unix.Close(dup)
		return nil, err
	}
	return os.NewFile(uintptr(dup), fd.Name()), nil
}

// newFDDevice does not check the kind of file; tests pass it a socketpair.
func newFDDevice(file *os.File, info Info) (*fdDevice, error) {
	d := &fdDevice{info: info, file: file, vnet: true}
	switch info.Kind {
	case KindTAP:
	case KindTAPPlain, KindSocket:
		if info.CSum || info.TSO || info.USO {
			return nil, fmt.Errorf("%w: offloads need virtio-net headers", unix.EINVAL)
		}
		d.vnet = false
	case KindPacket:
		d.packet = true
	default:
		return nil, fmt.Errorf("%w: unknown kind of link %q", unix.EINVAL, info.Kind)
	}
	var err error
	if d.conn, err = file.SyscallConn(); err != nil {
		return nil, err
	}
	d.rx = newRxState(d)
	d.tx.New = func() any { return newTxState(d) }
	return d, nil
}

// verify checks that the descriptor is of the kind in d.info: a missing or unexpected virtio-net header would shift every frame by
// ten bytes.
func (d *fdDevice) verify() (err error) {
	cerr := d.conn.Control(func(fd uintptr) {
		switch {
		case d.packet:
			err = verifyPacket(int(fd))
		case d.info.Kind == KindSocket: // Adopt has checked its type, and it has no headers
		default:
			err = verifyTAP(int(fd), d.vnet)
		}
	})
	return errors.Join(cerr, err)
}

func verifyTAP(fd int, vnet bool) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return fmt.Errorf("TUNGETIFF: %w", err)
	}
	flags := req.Uint16()
	if flags&unix.IFF_TAP == 0 || flags&unix.IFF_NO_PI == 0 || flags&unix.IFF_VNET_HDR != 0 != vnet {
		return fmt.Errorf("%w: TAP with flags %#x", unix.EINVAL, flags)
	}
	if !vnet {
		return nil
	}
	size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return fmt.Errorf("TUNGETVNETHDRSZ: %w", err)
	}
	if size != HeaderLen {
		return fmt.Errorf("%w: virtio-net header of %d bytes", unix.EINVAL, size)
	}
	return nil
}

func verifyPacket(fd int) error {
	on, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR)
	if err != nil {
		return fmt.Errorf("PACKET_VNET_HDR: %w", err)
	}
	if on == 0 {
		return fmt.Errorf("%w: packet socket without virtio-net headers", unix.EINVAL)
	}
	// The auxiliary data reports VLAN tags that the kernel took off.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("PACKET_AUXDATA: %w", err)
	}
	return nil
}

func (d *fdDevice) Info() Info { return d.info }

func (d *fdDevice) Stats() Stats {
	if d.packet {
		d.fetchKernelDrops()
	}
	return Stats{
		RxFrames: d.rxFrames.Load(), RxBytes: d.rxBytes.Load(), RxDropped: d.rxDropped.Load(),
		TxFrames: d.txFrames.Load(), TxBytes: d.txBytes.Load(), TxDropped: d.txDropped.Load(),
	}
}

// fetchKernelDrops adds the frames lost in the packet socket's queue since the last call: reading PACKET_STATISTICS clears it.
func (d *fdDevice) fetchKernelDrops() {
	// Control fails only if the device is closed, and Close has fetched the last value.
	_ = d.conn.Control(func(fd uintptr) {
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			d.rxDropped.Add(uint64(s.Drops))
		}
	})
}

func (d *fdDevice) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	if m := d.member.Load(); m != nil {
		m.Leave()
	}
	if d.packet {
		d.fetchKernelDrops()
		fd := -1
		if err := d.conn.Control(func(n uintptr) { fd = int(n) }); err == nil {
			return rawsock.CloseLater(fd, d.file.Close)
		}
	}
	return d.file.Close()
}

// mmsghdr is struct mmsghdr (include/linux/socket.h).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// iovec describes b, which must not be empty.
func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}
