package userns

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The hooks that package syscall runs around its own fork: they block every signal, and have a stack split crash the process
// rather than corrupt memory.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// Steps of forkJoin, as reported through its pipe.
const (
	stepPID = iota // not a failure: the value is init's pid
	stepSetns
	stepUnshare
	stepProc
	stepFork
	stepCaps
	stepFiles
	stepExec
)

// stepRecord is what a child writes into the pipe, in one write.
type stepRecord struct {
	step  int32
	value int32 // pid or errno
}

// capHeader and capData are those of capset(2), version 3.
type capHeader struct {
	version uint32
	pid     int32
}

type capData struct {
	_                      uint32 // effective: execve computes it from the others
	permitted, inheritable uint32
}

// joinPlan is everything the children need. It is made before the fork, since after it nothing may allocate memory.
type joinPlan struct {
	ns      []int // namespaces to enter in order; the user namespace first
	mntNS   int   // the mount namespace to enter; -1 for none
	unshare uintptr
	// keepProc mounts our own /proc in the mount namespace that is entered, where /proc is that of a pid namespace that is not
	// entered.
	keepProc  bool
	newPID    bool
	pdeathsig uintptr
	lastCap   uintptr
	files     [4]int // become 0..2 and initFD; all are numbered above initFD
	exe       int    // O_PATH
	report    int    // the pipe

	argv0, envv []*byte
	empty, proc *byte // "", "/proc"
}

// forkJoin forks a process of one thread, which enters the namespaces and clones init as a child of the calling process
// (CLONE_PARENT), then exits. It returns the pid of that intermediate process.
//
// The children may make raw system calls only, and do nothing that may split the stack or panic.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkJoin(p *joinPlan) (middle int, errno syscall.Errno) {
	var (
		r1, tree uintptr
		e        syscall.Errno
		i        int
		step     int32
		rec      stepRecord
		caps     = capHeader{version: unix.LINUX_CAPABILITY_VERSION_3}
		data     [2]capData
	)
	tree = ^uintptr(0)

	beforeFork()
	r1, _, e = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 || r1 != 0 {
		afterFork()
		return int(r1), e
	}
	afterForkInChild()

	step = stepSetns
	for i = range p.ns {
		if _, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(p.ns[i]), 0, 0); e != 0 {
			goto fail
		}
	}
	if p.keepProc {
		step = stepProc
		// Copying a mount is allowed only in a mount namespace that the user namespace entered before owns.
		if _, _, e = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0); e != 0 {
			goto fail
		}
		tree, _, e = syscall.RawSyscall(unix.SYS_OPEN_TREE, ^uintptr(99), uintptr(unsafe.Pointer(p.proc)),
			unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if e != 0 {
			goto fail
		}
	}
	step = stepSetns
	if p.mntNS >= 0 {
		if _, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(p.mntNS), unix.CLONE_NEWNS, 0); e != 0 {
			goto fail
		}
	}
	step = stepUnshare
	if p.unshare != 0 {
		if _, _, e = syscall.RawSyscall(unix.SYS_UNSHARE, p.unshare, 0, 0); e != 0 {
			goto fail
		}
	}
	if p.keepProc {
		step = stepProc
		// MS_SLAVE first: the mount must not propagate from the copy to the mount namespace that it was copied from.
		if _, _, e = syscall.RawSyscall6(unix.SYS_MOUNT, 0, uintptr(unsafe.Pointer(p.proc)), 0,
			unix.MS_SLAVE|unix.MS_REC, 0, 0); e != 0 && e != syscall.EINVAL {
			goto fail
		}
		if _, _, e = syscall.RawSyscall6(unix.SYS_MOVE_MOUNT, tree, uintptr(unsafe.Pointer(p.empty)),
			^uintptr(99), uintptr(unsafe.Pointer(p.proc)), unix.MOVE_MOUNT_F_EMPTY_PATH, 0); e != 0 {
			goto fail
		}
	}

	step = stepFork
	r1 = uintptr(syscall.SIGCHLD) | unix.CLONE_PARENT
	if p.newPID {
		r1 |= unix.CLONE_NEWPID
	}
	r1, _, e = syscall.RawSyscall6(syscall.SYS_CLONE, r1, 0, 0, 0, 0, 0)
	if e != 0 {
		goto fail
	}
	if r1 != 0 {
		rec.step, rec.value = stepPID, int32(r1)
		syscall.RawSyscall(syscall.SYS_WRITE, uintptr(p.report), uintptr(unsafe.Pointer(&rec)), unsafe.Sizeof(rec))
		for {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}

	step = stepCaps
	if _, _, e = syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&caps)),
		uintptr(unsafe.Pointer(&data)), 0); e != 0 {
		goto fail
	}
	data[0].inheritable = data[0].permitted
	data[1].inheritable = data[1].permitted
	if _, _, e = syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&caps)),
		uintptr(unsafe.Pointer(&data)), 0); e != 0 {
		goto fail
	}
	for r1 = 0; r1 <= p.lastCap; r1++ {
		// Raising a capability that is not permitted fails; init then reports the operation that needs it.
		syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, r1, 0, 0, 0)
	}
	if _, _, e = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_PDEATHSIG, p.pdeathsig, 0, 0, 0, 0); e != 0 {
		goto fail
	}
	step = stepFiles
	for i = range p.files {
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, uintptr(p.files[i]), uintptr(i), 0); e != 0 {
			goto fail
		}
	}
	step = stepExec
	_, _, e = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(p.exe), uintptr(unsafe.Pointer(p.empty)),
		uintptr(unsafe.Pointer(unsafe.SliceData(p.argv0))), uintptr(unsafe.Pointer(unsafe.SliceData(p.envv))),
		unix.AT_EMPTY_PATH, 0)

fail:
	rec.step, rec.value = step, int32(e)
	syscall.RawSyscall(syscall.SYS_WRITE, uintptr(p.report), uintptr(unsafe.Pointer(&rec)), unsafe.Sizeof(rec))
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

// stepNames is the Op of each step's error.
var stepNames = [...]string{
	stepSetns:   "enter the namespaces of the sandbox",
	stepUnshare: "copy the namespaces of the sandbox",
	stepProc:    "carry /proc into the sandbox",
	stepFork:    "fork in the sandbox",
	stepCaps:    "take capabilities in the sandbox",
	stepFiles:   "hand descriptors to the sandbox",
	stepExec:    "execute ourselves in the sandbox",
}

// dupAbove returns a close-on-exec copy of f's descriptor that is numbered above initFD: dup3 to 0..initFD must not overwrite
// one that is still needed.
func dupAbove(f *os.File) (int, error) {
	var fd int
	var derr error
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if err := c.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, initFD+1) }); err != nil {
		return -1, err
	}
	return fd, derr
}
