package helper

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// firstInherited is the first descriptor after the standard streams.
const firstInherited = 3

// Adopt takes over the descriptors that the caller of this program passed by number, and closes all others that it left open, as
// CloseInherited does. A negative number yields a nil file.
func Adopt(fds ...int) ([]*os.File, error) {
	files := make([]*os.File, len(fds))
	named := map[int]bool{}
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("descriptor %d, passed by the caller: %w", fd, err)
		}
		named[fd] = true
		if fd < firstInherited { // a standard stream stays open; the file gets a duplicate
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstInherited)
			if err != nil {
				return nil, fmt.Errorf("descriptor %d, passed by the caller: %w", fd, err)
			}
			fd = dup
		}
		unix.CloseOnExec(fd)
		files[i] = os.NewFile(uintptr(fd), "fd "+strconv.Itoa(fds[i]))
	}
	CloseInherited(func(fd int) bool { return named[fd] })
	return files, nil
}

// CloseInherited closes the descriptors that the caller of this program left open, except for the standard streams and those that
// keep returns true for: a pipe or lock kept open by a long-lived process would block other processes. Descriptors with
// close-on-exec were opened by this process (such as those of Go's runtime) and stay open. Without /proc the open descriptors are
// not known, and none is closed.
func CloseInherited(keep func(fd int) bool) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < firstInherited || keep(fd) {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}

// SetName sets the name of this process that ps and pgrep show (/proc/self/comm, proc(5)); the kernel keeps its first 15 bytes. A
// program that was started again as /proc/self/exe would be called "exe". Nothing depends on the name, so errors are ignored.
func SetName(name string) { _ = os.WriteFile("/proc/self/comm", []byte(name), 0) }

// Ready reports to the caller that the helper is ready, by writing "1" to f, and closes f. It does nothing if f is nil.
func Ready(f *os.File) error {
	if f == nil {
		return nil
	}
	_, err := f.Write([]byte("1"))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("report to the caller that the network is ready: %w", err)
	}
	return nil
}
