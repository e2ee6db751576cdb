package doctor

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refused is the errno of the system call that the probe's filter forbids. getpriority(2) never returns it otherwise.
const refused = unix.EXDEV

// loadFilter loads a filter that forbids getpriority(2), and calls getpriority. The filter applies to this thread until the process
// ends, so only a child may call loadFilter.
func loadFilter() finding {
	runtime.LockOSThread()
	detail := "a filter can be loaded"
	if selfStatus("Seccomp") == "2" {
		detail += " (this process is under another filter already)"
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return failed("no_new_privs", err)
	}
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // struct seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_GETPRIORITY},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(refused)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, en := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if en != 0 {
		return failed("load a filter", en)
	}
	if _, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err != refused {
		return finding{Status: Missing, Detail: "a filter was loaded but has no effect"}
	}
	return okf("%s", detail)
}
