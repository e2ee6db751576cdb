package tcp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Urgent data of the host is in line (SO_OOBINLINE): a read ends before the urgent byte, and SIOCATMARK tells whether it is the
// next one.

// atMark says whether the next byte is urgent.
func atMark(fd uintptr) bool {
	var at int32
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, fd, unix.SIOCATMARK, uintptr(unsafe.Pointer(&at)))
	return e == 0 && at != 0
}

// beforeMark returns how many of the next n bytes, which are queued, come before an urgent one.
func beforeMark(fd uintptr, n int) int {
	if atMark(fd) {
		return 0
	}
	// With MSG_TRUNC nothing is copied (tcp(7)).
	m, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, fd, 0, uintptr(n), unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0
	}
	return int(m)
}
