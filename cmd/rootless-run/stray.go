package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// closeStray closes what our caller left open by accident: a sandbox lives long, and a pipe or a lock held by it would
// keep others waiting. Kept are the standard three, the sockets passed in, and a detached process's pipes; and what has
// close-on-exec set, for that was opened since (the Go runtime has descriptors of its own).
func closeStray() {
	first := firstFD + listenFDs()
	if os.Getenv(detachedVar) != "" {
		first += 2
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < first {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}
