package rawsock

import (
	"os"

	"golang.org/x/sys/unix"
)

// TakeFD duplicates the descriptor of f and closes f: Go's poller, which a file belongs to, is then not woken by the
// events of a descriptor that another event loop watches.
func TakeFD(f *os.File) (fd int, err error) {
	defer f.Close()
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var derr error
	if err = c.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); err == nil {
		err = derr
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}
