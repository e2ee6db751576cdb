//go:build amd64 || arm64

package userns

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusedCalls are system calls that the supervisor does not need to move packets and that would serve an attacker who has
// taken it over: starting programs, reading other processes or taking their descriptors, entering or changing namespaces, and
// the parts of the kernel in which unprivileged users have found the most vulnerabilities. io_uring would bypass the filter.
var refusedCalls = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP, unix.SYS_PROCESS_MADVISE,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_PERSONALITY,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_REBOOT, unix.SYS_ACCT, unix.SYS_QUOTACTL,
}

// newNamespaces are the flags of clone(2) that make a namespace. Threads and plain forks are not refused.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// x32Bit is set in the numbers of amd64's x32 ABI, which has the same system calls under other numbers.
const x32Bit = 0x40000000

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h); both architectures are little-endian.
const (
	dataNr, dataArch, dataFirstArg = 0, 4, 16
)

// Filter loads a seccomp filter on all threads of the calling process: the system calls that the supervisor does not need to
// move packets fail with EPERM from then on. It is called after Confine, and after every Start and Enter, which it makes
// impossible. The error is that of seccomp(2): EINVAL or ENOSYS on a kernel without filters.
func Filter() error {
	prog := filterProgram()
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	// SPEC_ALLOW: before Linux 5.16 a filter otherwise enables speculation mitigations that slow the whole process down.
	_, _, e := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if e != 0 {
		return &Error{Op: "load a seccomp filter", Err: e}
	}
	return nil
}

func filterProgram() (prog []unix.SockFilter) {
	const equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	load := func(offset uint32) {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
	}
	jump := func(code uint16, k uint32, yes, no uint8) {
		prog = append(prog, unix.SockFilter{Code: code, Jt: yes, Jf: no, K: k})
	}
	ret := func(k uint32) { prog = append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}) }
	refuse := func(errno syscall.Errno) { ret(unix.SECCOMP_RET_ERRNO | uint32(errno)) }

	load(dataArch)
	jump(equal, arch, 1, 0)
	ret(unix.SECCOMP_RET_KILL_PROCESS) // another ABI, which no program of ours uses
	load(dataNr)
	if runtime.GOARCH == "amd64" {
		jump(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, x32Bit, 0, 1)
		refuse(unix.EPERM)
	}
	for _, nr := range refusedCalls {
		jump(equal, nr, 0, 1)
		refuse(unix.EPERM)
	}
	jump(equal, unix.SYS_CLONE3, 0, 1) // its flags are in memory, which a filter cannot read; on ENOSYS libraries use clone
	refuse(unix.ENOSYS)
	jump(equal, unix.SYS_CLONE, 0, 3)
	load(dataFirstArg)
	jump(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, newNamespaces, 0, 1)
	refuse(unix.EPERM)
	ret(unix.SECCOMP_RET_ALLOW)
	return prog
}
