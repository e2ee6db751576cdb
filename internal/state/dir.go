package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Error is a failure of this package. It wraps the cause.
type Error struct {
	Op  string // "open", "create", "write", "list", "lookup"
	Err error
}

func (e *Error) Error() string { return "state: " + e.Op + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// dirName is the name of the directory below the runtime directory.
const dirName = "rootless-run"

// Dir is the directory of a user's sandboxes. Its methods may be called from several goroutines and processes.
type Dir struct {
	path string
}

// Open returns the directory at path and makes it if it is missing. An empty path means the first of these that can be used:
// $XDG_RUNTIME_DIR/rootless-run, /run/user/UID/rootless-run, /run/rootless-run (for uid 0 only) and
// /tmp/rootless-run-UID. A directory that is a symbolic link or belongs to another user is refused; one that others may enter is
// set to mode 0700.
func Open(path string) (*Dir, error) {
	if path != "" {
		if err := makePrivate(path); err != nil {
			return nil, &Error{"open", err}
		}
		return &Dir{path}, nil
	}
	var errs []error
	for _, candidate := range defaults(os.Getenv("XDG_RUNTIME_DIR"), outsideUID()) {
		err := makePrivate(candidate)
		if err == nil {
			return &Dir{candidate}, nil
		}
		errs = append(errs, err)
	}
	return nil, &Error{"open", errors.Join(errs...)}
}

// defaults lists the directories to try, in order.
func defaults(xdg string, uid int) []string {
	var list []string
	if filepath.IsAbs(xdg) { // the XDG base directory specification says to ignore relative paths
		list = append(list, filepath.Join(xdg, dirName))
	}
	id := strconv.Itoa(uid)
	list = append(list, filepath.Join("/run/user", id, dirName))
	if uid == 0 {
		list = append(list, filepath.Join("/run", dirName)) // preferred to /tmp, where another user may have made the directory
	}
	return append(list, filepath.Join("/tmp", dirName+"-"+id))
}

// outsideUID translates our uid to the parent of our user namespace (user_namespaces(7)). Inside a sandbox, root is the user who
// started the sandbox; the directory of that uid is the one that the sandbox covers with a private mount.
func outsideUID() int {
	uid := os.Geteuid()
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return uid
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil && uid >= inside && uid < inside+count {
			return outside + uid - inside
		}
	}
	return uid
}

// makePrivate makes the directory path if it is missing, and makes sure that it belongs to our user, that no other user may
// enter it and that we can write to it. Its parent must exist.
func makePrivate(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// In /tmp another user may have made the path. All checks use one descriptor, so they are about the same directory, and
	// O_NOFOLLOW refuses a symbolic link.
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if int(st.Uid) != os.Geteuid() {
		return &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("owned by uid %d: %w", st.Uid, fs.ErrPermission)}
	}
	if st.Mode&0o077 != 0 {
		if err := unix.Fchmod(fd, 0o700); err != nil {
			return &fs.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if err := unix.Faccessat(fd, ".", unix.W_OK|unix.X_OK, 0); err != nil {
		return &fs.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

// Path returns the path of the directory.
func (d *Dir) Path() string { return d.path }

// lock takes the outer lock and returns the function that releases it. The lock is on the directory itself, so that no lock
// file remains.
func (d *Dir) lock() (unlock func(), err error) {
	f, err := lockPath(d.path, unix.O_RDONLY|unix.O_DIRECTORY, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}

// lockFile opens a file, which it makes if it is missing, and locks it. Closing the file releases the lock.
func lockFile(path string, how int) (*os.File, error) {
	return lockPath(path, os.O_RDWR|os.O_CREATE, how)
}

func lockPath(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	return f, nil
}
