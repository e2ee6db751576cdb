package rawsock

import "golang.org/x/sys/unix"

// CloseLater calls close, which closes the last descriptor of the caller for the file of fd, and returns its error. The kernel
// frees the file soon afterwards in a thread of its own. It is for files that the kernel frees after an RCU grace period (packet
// sockets, packet_release in net/packet/af_packet.c), for 10 ms and more of which close(2) would otherwise wait.
//
// The file is put, together with a unix socket, into the receive queue of that same socket. With the caller's descriptors closed
// only the queue refers to both, and the kernel's garbage collector for unix sockets, a work queue since Linux 6.9, frees such a
// cycle (net/unix/garbage.c). An older kernel collects it in the calling thread, which then waits as close(2) does. The same holds
// if the file cannot be put there.
func CloseLater(fd int, close func() error) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return close()
	}
	to, from := pair[0], pair[1]
	_ = unix.Sendmsg(from, []byte{0}, unix.UnixRights(fd, to), nil, unix.MSG_DONTWAIT)
	err = close()
	unix.Close(to)
	unix.Close(from) // the release of this socket, of which there is no other reference, starts the collector
	return err
}
