package gateway

import (
	"math"

	"golang.org/x/sys/unix"
)

// forwardShare: loopback forwards may use one of this many parts of RLIMIT_NOFILE for their listening sockets. The rest is
// for connections.
const forwardShare = 2

// maxForwards is how many loopback forwards may be open at once: each has one listening socket.
func maxForwards() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil || lim.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(lim.Cur) / forwardShare
}
