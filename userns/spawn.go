package userns

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

const (
	// initArgv0 is how Init recognises that it is init; the descriptor initFD is then its SOCK_SEQPACKET socket.
	initArgv0 = "rootlessnet-init"
	// initName is the name that ps shows, at most 15 bytes (TASK_COMM_LEN).
	initName = "rootless-init"
	initFD   = 3

	selfExe = "/proc/self/exe"
)

// initEnv keeps init small: it handles one request at a time, and its set-up is too short for garbage collection, which it
// enables afterwards. GORACE affects race-detector builds only, which otherwise sleep for a second at exit.
var initEnv = []string{"GOGC=off", "GOMAXPROCS=1", "GORACE=atexit_sleep_ms=0"}

// child is the init process, seen from its parent.
type child struct {
	proc *os.Process
}

// pid returns init's pid in the supervisor's pid namespace.
func (c *child) pid() int { return c.proc.Pid }

// deathSignal is init's parent-death signal. Without a pid namespace init must not be killed, because it kills its descendants
// when it reads EOF: SIGCONT only continues an init that was stopped. With a pid namespace SIGKILL ends init, and the kernel
// kills all other processes of the namespace.
func deathSignal(pidns bool) syscall.Signal {
	if pidns {
		return syscall.SIGKILL
	}
	return syscall.SIGCONT
}

// spawnNew clones init into new namespaces, with every capability there. The calling goroutine must be locked to its thread for
// as long as init runs: the parent-death signal is sent when that thread ends.
func spawnNew(cfg Config, sock *os.File) (*child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC)
	if cfg.Network != NetworkHost {
		flags |= unix.CLONE_NEWNET
	}
	if cfg.PIDNamespace {
		flags |= unix.CLONE_NEWPID
	}
	proc, err := os.StartProcess(selfExe, []string{initArgv0}, &os.ProcAttr{
		Env:   initEnv,
		Files: []*os.File{null, null, os.Stderr, sock}, // stderr for the message of a crash
		Sys: &syscall.SysProcAttr{
			Cloneflags:  flags,
			AmbientCaps: allCaps(),
			Pdeathsig:   deathSignal(cfg.PIDNamespace),
		},
	})
	if err != nil {
		return nil, &Error{Op: "create a user namespace", Err: unwrapErrno(err), Hint: netns.HintDoctor}
	}
	return &child{proc: proc}, nil
}

// allCaps lists the capabilities this kernel has. PR_CAPBSET_READ fails for those that it does not have (capabilities(7)).
func allCaps() []uintptr {
	var caps []uintptr
	for c := uintptr(0); c < 64; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break
		}
		caps = append(caps, c)
	}
	return caps
}
