package rawsock

import "golang.org/x/sys/unix"

// Dead says whether the connection of a TCP socket has ended: after both FINs, a reset or a timeout.
//
// It tells the reset from the FIN where a read says "end of stream": a socket tells its error once (sk_err), to whichever
// call comes first, and afterwards reads end in good order. A connection that is dead without a FIN of our own was reset.
func Dead(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State == tcpClose
}

// tcpClose is TCP_CLOSE of include/net/tcp_states.h.
const tcpClose = 7
