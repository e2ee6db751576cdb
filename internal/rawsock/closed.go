package rawsock

import "golang.org/x/sys/unix"

// Closed reports whether the connection of a TCP socket is in state CLOSE: after FINs in both directions, a reset or a timeout.
//
// It distinguishes a reset from a FIN when a read returns end of file: a socket reports its error (sk_err) once, to the first call
// made, and later reads return end of file. A connection in CLOSE for which this side has not sent a FIN was reset.
func Closed(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State == tcpClose
}

// tcpClose is TCP_CLOSE of include/net/tcp_states.h.
const tcpClose = 7
