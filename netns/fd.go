package netns

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// dupFD returns a close-on-exec copy of the descriptor of c, an *os.File or a netlink connection. Unlike the method Fd it
// leaves the file description non-blocking.
func dupFD(c syscall.Conn) (fd int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	const least = 3 // never one of the standard descriptors
	var derr error
	if err := rc.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, least) }); err != nil {
		return -1, err
	}
	return fd, derr
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
