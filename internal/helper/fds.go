package helper

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// firstInherited is the first descriptor beyond the standard three.
const firstInherited = 3

// Adopt takes over the descriptors that our caller named, and closes what else it left open: a pipe or a lock held by a
// helper that lives long would keep others waiting. A negative number names none and gives a nil file. What has
// close-on-exec set was opened since we were started (the Go runtime has descriptors of its own) and stays.
func Adopt(fds ...int) ([]*os.File, error) {
	files := make([]*os.File, len(fds))
	named := map[int]bool{}
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("descriptor %d, which the caller names: %w", fd, err)
		}
		named[fd] = true
		if fd < firstInherited { // a standard stream: leave it where it is, and let the file have its own
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstInherited)
			if err != nil {
				return nil, fmt.Errorf("descriptor %d, which the caller names: %w", fd, err)
			}
			fd = dup
		}
		unix.CloseOnExec(fd)
		files[i] = os.NewFile(uintptr(fd), "fd "+strconv.Itoa(fds[i]))
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return files, nil // without /proc nobody can tell what is open
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < firstInherited || named[fd] {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
	return files, nil
}

// Ready tells the caller that everything is up, and closes the descriptor; a nil file means nobody asked.
func Ready(f *os.File) error {
	if f == nil {
		return nil
	}
	_, err := f.Write([]byte("1"))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("tell the caller that the network is ready: %w", err)
	}
	return nil
}
