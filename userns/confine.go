package userns

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Confine removes from the calling process, on all its threads, what the supervisor does not need to move packets: every
// capability (an ordinary user has none), the means to gain privilege by execve (no_new_privs), and access by other processes
// of the same user (PR_SET_DUMPABLE 0, which also closes /proc/PID/{fd,mem,ns} to the processes inside). It cannot be undone.
// It is called after Start, since newuidmap needs its setuid bit; later sandboxes with IDMapAuto get IDMapRoot and a warning.
//
// In a program with cgo, Go cannot change the capabilities of every thread. If such a program has capabilities, the error is
// ENOTSUP (by errors.Is), and everything but the capabilities is done.
func Confine() error {
	if err := noNewPrivs(); err != nil {
		return &Error{Op: "set no_new_privs", Err: err}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return &Error{Op: "become not dumpable", Err: err}
	}
	// Last, because a caller may ignore this error.
	if err := dropCapabilities(); err != nil {
		return &Error{Op: "drop capabilities", Err: err}
	}
	return nil
}

func noNewPrivs() error {
	_, _, e := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if e != syscall.ENOTSUP {
		return errnoOrNil(e)
	}
	// With cgo, Go cannot make the call on every thread. Synchronising a seccomp filter to all threads sets no_new_privs on
	// them, too (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC); this filter allows everything.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	prog := unix.SockFprog{Len: 1, Filter: &allow}
	_, _, e = syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&prog)))
	return errnoOrNil(e)
}

func dropCapabilities() error {
	hdr := capHeader{version: unix.LINUX_CAPABILITY_VERSION_3}
	var data, none [2]capData
	if _, _, e := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&hdr)),
		uintptr(unsafe.Pointer(&data)), 0); e != 0 {
		return e
	}
	if data == none {
		return nil
	}
	_, _, e := syscall.AllThreadsSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)),
		uintptr(unsafe.Pointer(&none)), 0)
	if e == syscall.ENOTSUP {
		return fmt.Errorf("%w: not in a program with cgo that started with capabilities", e)
	}
	return errnoOrNil(e)
}

func errnoOrNil(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// CloseInherited sets close-on-exec on the descriptors from 3 on, except those in keep, which stay as they are: descriptors
// that the caller of this process leaked to it are not passed on to the programs that it executes.
func CloseInherited(keep ...int) error {
	keep = slices.Sorted(slices.Values(keep))
	first := uint(3)
	for _, k := range append(keep, -1) {
		last := uint(math.MaxUint32)
		if k >= 0 {
			if uint(k) < first {
				continue
			}
			last = uint(k) - 1
		}
		if last >= first {
			if err := closeRangeExec(first, last); err != nil {
				return &Error{Op: "close inherited descriptors on exec", Err: err}
			}
		}
		first = uint(k) + 1
	}
	return nil
}

// closeRangeExec is close_range(2) with CLOSE_RANGE_CLOEXEC. On a kernel without it (before 5.11) it sets the flag on each
// descriptor of /proc/self/fd.
func closeRangeExec(first, last uint) error {
	err := unix.CloseRange(first, last, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 31)
		if err == nil && uint(n) >= first && uint(n) <= last {
			unix.CloseOnExec(int(n)) // an error: it was the descriptor of the directory
		}
	}
	return nil
}
