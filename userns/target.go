package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/watch"
	"rootlessnet/netns"
)

// Target is a network namespace that another program made, held open until Close.
type Target struct {
	net   *os.File
	user  *os.File // the user namespace to enter first; nil for ours
	pidfd *os.File // of a target by pid
	path  string   // of a target by path
	what  string   // for errors
}

// OpenTarget opens the network namespace of process pid, or the one at path, and the user namespace to enter
// for it: the one at the path user or, where that is empty, its owner's unless that is ours. The error is an *Error.
func OpenTarget(pid int, path, user string) (*Target, error) {
	t := &Target{path: path, what: path}
	if path == "" {
		t.what = fmt.Sprintf("process %d", pid)
	}
	err := t.open(pid, user)
	if err != nil {
		t.Close()
		hint := ""
		if errors.Is(err, fs.ErrPermission) {
			hint = netns.HintOwner
		}
		return nil, &Error{Op: "open the network namespace of " + t.what, Err: plain(err), Hint: hint}
	}
	return t, nil
}

// plain returns the cause inside an *os.PathError, whose text would name /proc/PID/ns/net instead of the process.
func plain(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (t *Target) open(pid int, user string) error {
	path := t.path
	if path == "" {
		if pid <= 0 {
			return syscall.ESRCH
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		t.pidfd = os.NewFile(uintptr(fd), "pidfd")
		path = fmt.Sprintf("/proc/%d/ns/net", pid)
	}
	var err error
	if t.net, err = openNS(path, unix.CLONE_NEWNET); err != nil {
		if t.pidfd != nil && errors.Is(err, fs.ErrNotExist) {
			return syscall.ESRCH
		}
		return err
	}
	if t.pidfd != nil && hasEnded(t.pidfd) {
		return syscall.ESRCH // the path may have been that of another process with the same pid
	}
	if user != "" {
		t.user, err = openNS(user, unix.CLONE_NEWUSER)
		if err != nil {
			return fmt.Errorf("user namespace %s: %w", user, err)
		}
	} else if fd, err := unix.IoctlRetInt(int(t.net.Fd()), unix.NS_GET_USERNS); err == nil {
		t.user = os.NewFile(uintptr(fd), "owner")
	} // else EPERM: we are in the owning user namespace or in a descendant of it, or may not enter it
	if t.user != nil && sameNS(t.user, "/proc/self/ns/user") {
		t.user.Close()
		t.user = nil
	}
	return nil
}

// openNS opens a namespace file and checks its type, a CLONE_NEW constant, since the path may have been replaced.
func openNS(path string, typ int) (*os.File, error) {
	// O_NONBLOCK, unlike os.Open: opening a FIFO must not block.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	got, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || got != typ {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: path, Err: errNotNamespace}
	}
	return os.NewFile(uintptr(fd), path), nil
}

var errNotNamespace = errors.New("not a namespace of this type")

// Inode is the inode number that identifies the network namespace, 0 if it cannot be read.
func (t *Target) Inode() uint64 {
	var st unix.Stat_t
	if unix.Fstat(int(t.net.Fd()), &st) != nil {
		return 0
	}
	return st.Ino
}

// sameNS reports whether path is the file f; false also when there is no such path.
func sameNS(f *os.File, path string) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(path)
	return err == nil && os.SameFile(ours, theirs)
}

// stillNS is sameNS, but true also if path may not be read. That is so for /proc/PID/ns once the supervisor has dropped its
// capabilities, and perhaps for a directory on the way, and does not mean that the namespace has ended.
func stillNS(f *os.File, path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrPermission) || sameNS(f, path)
}

// hasEnded reports whether the process of a pidfd has ended.
func hasEnded(pidfd *os.File) bool {
	p := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// Watch reports the end of the target: its process has ended, or its path is no longer the namespace.
func (t *Target) Watch() (*watch.Watch, error) {
	if t.pidfd == nil {
		return watch.Path(t.path, func() bool { return stillNS(t.net, t.path) }), nil
	}
	w, err := watch.File(t.pidfd)
	if err != nil {
		return nil, &Error{Op: "watch " + t.what, Err: err}
	}
	return w, nil
}

// String is the target's name for messages: its path or its pid.
func (t *Target) String() string { return t.what }

// Close closes the namespaces. It may be called more than once; a Watch must be closed before.
func (t *Target) Close() {
	for _, f := range []*os.File{t.net, t.user, t.pidfd} {
		if f != nil {
			f.Close()
		}
	}
}

// spawnAttach starts init in the target's namespaces. The calling goroutine must be locked to its thread, as for spawnNew.
func spawnAttach(t *Target, sock *os.File) (*child, error) {
	e := entry{pdeathsig: deathSignal(false)}
	for _, f := range []*os.File{t.user, t.net} {
		if f != nil {
			e.ns = append(e.ns, f)
		}
	}
	c, err := spawnInto(e, sock)
	if err != nil {
		var ours *Error
		if !errors.As(err, &ours) {
			err = &Error{Op: "enter the network namespace of " + t.what, Err: unwrapErrno(err)}
		} else if errors.Is(err, syscall.EPERM) {
			ours.Hint = netns.HintOwner
		}
		return nil, err
	}
	return c, nil
}
