package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// joinMode selects the namespaces of a sandbox that spawnJoin enters.
type joinMode int

const (
	// joinNetwork enters the user and the network namespace and makes copies of mount and UTS namespace: --network container:NAME.
	joinNetwork joinMode = iota
	// joinAll enters all of them: rootless-net exec.
	joinAll
)

// nsFiles are the namespaces of another process. An entry is nil if this process is in that namespace.
type nsFiles struct {
	user, net, mnt, uts, ipc, pid *os.File
}

func (n *nsFiles) close() {
	for _, f := range []*os.File{n.user, n.net, n.mnt, n.uts, n.ipc, n.pid} {
		if f != nil {
			f.Close()
		}
	}
}

// openNamespaces opens the namespaces of pid that are not ours.
func openNamespaces(pid int) (*nsFiles, error) {
	n := new(nsFiles)
	for _, e := range []struct {
		name string
		file **os.File
	}{{"user", &n.user}, {"net", &n.net}, {"mnt", &n.mnt}, {"uts", &n.uts}, {"ipc", &n.ipc}, {"pid", &n.pid}} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, e.name))
		if err != nil {
			n.close()
			if errors.Is(err, fs.ErrNotExist) {
				err = syscall.ESRCH
			}
			return nil, err
		}
		theirs, err := f.Stat()
		if err != nil {
			f.Close()
			n.close()
			return nil, err
		}
		if ours, err := os.Stat("/proc/self/ns/" + e.name); err == nil && os.SameFile(ours, theirs) {
			f.Close()
			continue
		}
		*e.file = f
	}
	return n, nil
}

// spawnJoin starts init in the namespaces of pid. The calling goroutine must be locked to its thread, as for spawnNew.
func spawnJoin(pid int, mode joinMode, pidns bool, sock *os.File) (*child, error) {
	fail := func(err error) (*child, error) {
		return nil, &Error{Op: fmt.Sprintf("join the namespaces of process %d", pid), Err: unwrapErrno(err)}
	}
	ns, err := openNamespaces(pid)
	if err != nil {
		return fail(err)
	}
	defer ns.close()
	e := entry{mnt: ns.mnt, newPID: pidns && mode == joinNetwork, pdeathsig: deathSignal(pidns)}
	enter := []*os.File{ns.user, ns.net, ns.uts}
	if mode == joinAll {
		enter = append(enter, ns.ipc, ns.pid)
	} else {
		e.unshare = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
		e.keepProc = ns.pid != nil && ns.mnt != nil
	}
	for _, f := range enter {
		if f != nil {
			e.ns = append(e.ns, f)
		}
	}
	c, err := spawnInto(e, sock)
	var ours *Error
	var interrupted *InterruptedError
	if err != nil && !errors.As(err, &ours) && !errors.As(err, &interrupted) {
		return fail(err)
	}
	return c, err
}

// entry describes how to enter existing namespaces; joinPlan explains the fields of the same name.
type entry struct {
	ns               []*os.File // in order, the user namespace first
	mnt              *os.File   // may be nil
	unshare          uintptr
	keepProc, newPID bool
	pdeathsig        syscall.Signal
}

// spawnInto starts init in the namespaces of en. The error of a step of forkJoin is an *Error.
func spawnInto(en entry, sock *os.File) (*child, error) {
	fail := func(err error) (*child, error) { return nil, err }
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer null.Close()
	exe, err := unix.Open(selfExe, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(exe)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fail(err)
	}
	reports := os.NewFile(uintptr(pipe[0]), "reports")
	defer reports.Close()
	write := os.NewFile(uintptr(pipe[1]), "report")
	defer write.Close()

	argv, err := syscall.SlicePtrFromStrings([]string{initArgv0})
	if err != nil {
		return fail(err)
	}
	envv, err := syscall.SlicePtrFromStrings(initEnv)
	if err != nil {
		return fail(err)
	}
	p := &joinPlan{
		mntNS: -1, exe: exe, argv0: argv, envv: envv, unshare: en.unshare, keepProc: en.keepProc, newPID: en.newPID,
		pdeathsig: uintptr(en.pdeathsig), lastCap: uintptr(len(allCaps()) - 1),
		empty: new(byte), proc: unsafe.StringData("/proc\x00"),
	}
	var dups []int
	defer func() {
		for _, fd := range dups {
			unix.Close(fd)
		}
	}()
	dup := func(f *os.File) int {
		fd, derr := dupAbove(f)
		if derr != nil {
			err = derr
			return -1
		}
		dups = append(dups, fd)
		return fd
	}
	for _, f := range en.ns {
		p.ns = append(p.ns, dup(f))
	}
	if en.mnt != nil {
		p.mntNS = dup(en.mnt)
	}
	for i, f := range []*os.File{null, null, os.Stderr, sock} {
		p.files[i] = dup(f)
	}
	p.report = dup(write)
	if err != nil {
		return fail(err)
	}

	syscall.ForkLock.Lock()
	middle, errno := forkJoin(p)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(p)
	if errno != 0 {
		return fail(errno)
	}
	unix.Close(p.report)
	dups = dups[:len(dups)-1]
	write.Close()

	initPID, err := readReports(reports)
	var status syscall.WaitStatus
	for {
		if _, werr := syscall.Wait4(middle, &status, 0, nil); werr != syscall.EINTR {
			break
		}
	}
	if e := interruption(status); e != nil && initPID == 0 {
		return nil, e
	}
	if err == nil && initPID == 0 {
		err = &Error{Op: "fork in the sandbox", Err: fmt.Errorf("the forked process ended: %#x", int(status))}
	}
	if initPID == 0 {
		return nil, err
	}
	proc, ferr := os.FindProcess(initPID)
	if ferr != nil {
		return fail(ferr)
	}
	if err != nil { // init was cloned, but could not execute our binary: it has exited
		proc.Wait()
		return nil, err
	}
	return &child{proc: proc}, nil
}

// readReports reads the records of forkJoin's children until both have closed the pipe, by exit or by execve.
func readReports(r *os.File) (initPID int, err error) {
	for {
		var rec stepRecord
		b := (*[unsafe.Sizeof(rec)]byte)(unsafe.Pointer(&rec))
		if n, rerr := r.Read(b[:]); rerr != nil || n != len(b) {
			return initPID, err
		}
		switch {
		case rec.step == stepPID:
			initPID = int(rec.value)
		case rec.step > 0 && int(rec.step) < len(stepNames):
			err = &Error{Op: stepNames[rec.step], Err: syscall.Errno(rec.value), Hint: joinHint(syscall.Errno(rec.value))}
		}
	}
}

func joinHint(e syscall.Errno) string {
	if e == syscall.EPERM {
		return "a sandbox can be joined by the user who started it, from outside of it"
	}
	return ""
}

// unwrapErrno returns the errno inside an os.PathError or the like, whose text ("fork/exec /proc/self/exe") does not help the
// user; any other error as it is.
func unwrapErrno(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
