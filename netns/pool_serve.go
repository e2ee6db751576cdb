package netns

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ServePool opens sockets in the namespace of the process for the Pool that another process makes of the file returned, until
// every copy of that file is closed.
func ServePool() (*os.File, error) {
	inside, outside, err := poolPair()
	if err != nil {
		return nil, err
	}
	go servePool(inside) // it ends with the last copy of outside, at the latest with the process
	return outside, nil
}

// poolPair makes the two ends of a pool's connection.
func poolPair() (inside *net.UnixConn, outside *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "pool server")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return c.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "pool"), nil
}

// servePool answers requests with sockets of the calling thread's namespace until the other end is closed.
func servePool(u *net.UnixConn) {
	defer u.Close()
	var b [2]byte
	for {
		if n, err := u.Read(b[:]); err != nil || n != len(b) || b[1] > maxBatch {
			return
		}
		batch := openBatch(b[0], int(b[1]))
		var rights []byte
		if len(batch) > 0 {
			rights = unix.UnixRights(batch...)
		}
		_, _, err := u.WriteMsgUnix(b[:1], rights, nil)
		if err != nil && len(batch) > 0 {
			// ETOOMANYREFS: the user's programs together have more descriptors in messages under way than RLIMIT_NOFILE. That
			// passes within moments; this answer has no descriptors.
			_, err = u.Write(b[:1])
		}
		closeFDs(batch)
		if err != nil {
			return
		}
	}
}

// openBatch opens n sockets of the kind, or as many as there are descriptors for.
func openBatch(kind byte, n int) (fds []int) {
	for range n {
		fd, err := openKind(kind)
		if err != nil {
			break
		}
		fds = append(fds, fd)
	}
	return fds
}

func openKind(kind byte) (fd int, err error) {
	switch kind {
	case kindUDP4, kindUDP6:
		return openSocket(kind == kindUDP6, unix.SOCK_DGRAM)
	case kindPlain4, kindPlain6:
		return openSocket(kind == kindPlain6, unix.SOCK_STREAM)
	case kindForwarded4, kindForwarded6:
		return transparentSocket(kind == kindForwarded6, markForwarded)
	}
	return transparentSocket(kind == kindTransparent6, markTransparent)
}
