package userns

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

const (
	// initArgv0 marks the process that Init turns into init, together with a SOCK_SEQPACKET socket at initFD.
	initArgv0 = "rootlessnet-init"
	// initName is what ps shows: 15 bytes at most.
	initName = "rootless-init"
	initFD   = 3

	selfExe = "/proc/self/exe"
)

// initEnv keeps init small: it works on one thing at a time, and its set-up is shorter than a collection is worth (the
// collector is turned on afterwards). GORACE matters to race-detector builds only, which sleep a second at exit.
var initEnv = []string{"GOGC=off", "GOMAXPROCS=1", "GORACE=atexit_sleep_ms=0"}

// child is init as its parent sees it.
type child struct {
	proc *os.Process
}

// pid is in the supervisor's pid namespace.
func (c *child) pid() int { return c.proc.Pid }

// wakeSignal is init's parent-death signal. Without a pid namespace init must live on to kill its descendants, which EOF
// tells it to; the signal only wakes it if it was stopped. With one, the kernel kills them with init.
func wakeSignal(pidns bool) syscall.Signal {
	if pidns {
		return syscall.SIGKILL
	}
	return syscall.SIGCONT
}

// spawnNew clones init into new namespaces, with every capability there. The calling goroutine must be locked to its
// thread, and the thread live as long as init: the parent-death signal follows it.
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
		Files: []*os.File{null, null, os.Stderr, sock}, // stderr for the one case of a crash
		Sys: &syscall.SysProcAttr{
			Cloneflags:  flags,
			AmbientCaps: allCaps(),
			Pdeathsig:   wakeSignal(cfg.PIDNamespace),
		},
	})
	if err != nil {
		return nil, &Error{Op: "create a user namespace", Err: unwrapErrno(err), Hint: netns.HintDoctor}
	}
	return &child{proc: proc}, nil
}

// allCaps lists the capabilities this kernel has. PR_CAPBSET_READ fails for those it does not know (capabilities(7)).
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
