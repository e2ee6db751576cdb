package userns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

const (
	// hostEntry is the name inside a mirror under which the host's directory itself is mounted.
	hostEntry = ".host"
	// newEntry is the name of a symbolic link before it gets its own.
	newEntry = ".new"

	// mirrorFlags are those of a mirror's own mount. What is bound into it keeps the flags that it has on the host.
	mirrorFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// mirrorOptions limit the size, so that the command cannot fill memory by way of our files in it; a hosts file with a block
	// list is a few MiB. Each entry of the host's directory takes one inode.
	mirrorOptions = "mode=0755,size=32m,nr_inodes=16k"
	// maxBound is how many entries of one directory become mounts; the rest are symbolic links. Common are 60 to 250 in /etc. The
	// kernel permits 100,000 mounts in a namespace (fs.mount-max).
	maxBound = 1024
)

// stagingDirs are tried in order for the place where a mirror is built before it is moved to the directory that it mirrors.
var stagingDirs = []string{"/tmp", "/run", "/mnt", "/var"}

// mirror is a directory of the host as the sandbox sees it: a read-only tmpfs that covers the directory and has an entry for each
// of the host's, except for the names that are ours. A file or directory of the host is bind-mounted on an empty one of the tmpfs,
// a symbolic link is copied.
//
// The mount points are therefore entries of our tmpfs, which the host cannot rename or remove: the kernel detaches a mount, in
// every mount namespace, as soon as its mount point is removed or replaced (fs/namei.c, detach_mounts).
//
// refresh follows the changes of the host's directory. It changes entries of the tmpfs only and never mounts, so that a change
// arrives in copies of the mount namespace as well (sandboxes that joined, containers that the command starts): what the
// host has added or replaced becomes a symbolic link to the same name in hostEntry, where the host's directory is mounted.
type mirror struct {
	path string   // of the directory, absolute and without symbolic links
	host *os.File // the host's directory
	own  *os.File // the tmpfs by a mount that is not read-only and has no place in the namespace
	ours map[string]bool
}

// newMirror prepares a mirror of path, which must be an existing directory.
func newMirror(path string, ours map[string]bool) (*mirror, error) {
	host, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &mirror{path: path, host: host, ours: ours}, nil
}

// fillFunc makes the entries of a mirror whose names are ours, or leaves them out. dir is where the mirror is being built, before
// it appears.
type fillFunc func(m *mirror, dir string) error

// mount covers the directory.
func (m *mirror) mount(fill fillFunc) error {
	return stage(func(dir string) error { return m.build(dir, fill) })
}

func (m *mirror) close() {
	m.host.Close()
	if m.own != nil {
		m.own.Close()
	}
}

// build makes the mirror in the empty tmpfs at dir and moves it to m.path. The tmpfs stays mounted at dir.
func (m *mirror) build(dir string, fill fillFunc) error {
	var err error
	if m.own, err = os.Open(dir); err != nil {
		return err
	}
	// A second mount of the tmpfs, on top of the first. It becomes the mirror; m.own stays with the first.
	if err := bind(dir, dir, 0); err != nil {
		return err
	}
	err = m.populate(dir)
	if err == nil {
		err = fill(m, dir)
	}
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|mirrorFlags, "")
	}
	if err == nil {
		// By descriptor, because dir may cover the directory.
		err = unix.Mount(dir, procFD(m.host), "", unix.MS_MOVE, "")
	}
	if err != nil {
		return errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	return nil
}

// populate makes the entries that are the host's.
func (m *mirror) populate(dir string) error {
	all := filepath.Join(dir, hostEntry)
	if err := os.Mkdir(all, 0o755); err != nil {
		return err
	}
	if err := bind(procFD(m.host), all, unix.MS_REC); err != nil {
		return err
	}
	entries, err := os.ReadDir(all)
	if err != nil {
		return err
	}
	for i, e := range entries {
		name := e.Name()
		if m.isOurs(name) {
			continue
		}
		err := errSymlink
		if i < maxBound && e.Type()&fs.ModeSymlink == 0 {
			err = bindEntry(filepath.Join(all, name), filepath.Join(dir, name), e.IsDir())
		}
		if err != nil {
			err = m.link(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

var errSymlink = errors.New("not bound")

// bindEntry bind-mounts from, a directory or another file, on a new entry. On an error there is no entry.
func bindEntry(from, to string, isDir bool) error {
	var err error
	if isDir {
		err = unix.Mkdir(to, 0o755)
	} else {
		err = unix.Mknod(to, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return err
	}
	if err := bind(from, to, unix.MS_REC); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

func (m *mirror) isOurs(name string) bool {
	return name == hostEntry || name == newEntry || m.ours[name]
}

// target returns what the symbolic link for the host's entry of that name contains: the text of the host's own link, otherwise
// the entry by way of hostEntry. Relative, so that it is also right in a sandbox inside this one, where hostEntry is this mirror.
func (m *mirror) target(name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(m.host.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return hostEntry + "/" + name, nil
	}
	return readlinkAt(m.host, name)
}

// link makes a new entry that is a symbolic link.
func (m *mirror) link(name string) error {
	target, err := m.target(name)
	if err != nil {
		return err
	}
	return unix.Symlinkat(target, int(m.own.Fd()), name)
}

// current says whether the entry is as the host's: the same file, or a link that leads to it.
func (m *mirror) current(name string) bool {
	target, err := m.target(name)
	if err != nil {
		var st unix.Stat_t
		return unix.Fstatat(int(m.own.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil // neither has it
	}
	if have, err := readlinkAt(m.own, name); err == nil {
		return have == target
	}
	var theirs, seen unix.Stat_t
	return unix.Fstatat(int(m.host.Fd()), name, &theirs, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Lstat(filepath.Join(m.path, name), &seen) == nil && theirs.Dev == seen.Dev && theirs.Ino == seen.Ino
}

// refresh makes the entries of those names what they are on the host now.
func (m *mirror) refresh(names []string) {
	var stale []string
	for _, name := range names {
		if !m.isOurs(name) && !m.current(name) {
			stale = append(stale, name)
		}
	}
	if len(stale) == 0 {
		return
	}
	// The kernel refuses to remove or replace a mount point of the own namespace (EBUSY). From another one it does so and
	// detaches what is mounted there in all namespaces, in one step.
	inOtherMountNamespace(m.path, func() {
		for _, name := range stale {
			_ = m.replace(name) // an error: the entry stays as it was
		}
	})
}

// replace makes the entry anew.
func (m *mirror) replace(name string) error {
	own := int(m.own.Fd())
	target, err := m.target(name)
	if err == nil {
		if err := unix.Symlinkat(target, own, newEntry); err != nil {
			return err
		}
		if err = unix.Renameat(own, newEntry, own, name); err == nil {
			return nil
		}
		defer unix.Unlinkat(own, newEntry, 0)
		if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	// The host has removed the entry, or a directory is in the place of the link.
	rerr := unix.Unlinkat(own, name, 0)
	if errors.Is(rerr, unix.EISDIR) {
		rerr = unix.Unlinkat(own, name, unix.AT_REMOVEDIR)
	}
	if rerr != nil || target == "" {
		return rerr
	}
	return unix.Renameat(own, newEntry, own, name)
}

// refreshAll is refresh for every name that there is here or there.
func (m *mirror) refreshAll() {
	var names []string
	for _, dir := range []string{procFD(m.host), procFD(m.own)} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	m.refresh(names)
}

// inOtherMountNamespace runs f on a thread with a copy of the mount namespace in which nothing is mounted at path. The copy ends
// with the thread. f uses descriptors that were opened before. Without a copy, f is not run.
func inOtherMountNamespace(path string, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Unshare(unix.CLONE_NEWNS) != nil ||
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") != nil { // the command may have made mounts shared
			return
		}
		for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
		f()
	}()
	<-done
}

// stage mounts an empty tmpfs on one of stagingDirs, calls f with its path, and unmounts it.
func stage(f func(dir string) error) error {
	var errs []error
	for _, d := range stagingDirs {
		if st, err := os.Lstat(d); err != nil || !st.IsDir() {
			continue
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", mirrorFlags, mirrorOptions); err != nil {
			errs = append(errs, err)
			continue
		}
		err := f(d)
		if uerr := unix.Unmount(d, unix.MNT_DETACH); err == nil && uerr != nil {
			err = &Error{Op: "unmount " + d, Err: uerr}
		}
		return err
	}
	return &Error{Op: "mount a tmpfs", Err: errors.Join(append(errs, unix.EPERM)...), Hint: netns.HintDoctor}
}

func bind(from, to string, flags uintptr) error {
	return unix.Mount(from, to, "", unix.MS_BIND|flags, "")
}

// procFD is a path of the open directory, whatever covers it.
func procFD(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

func readlinkAt(dir *os.File, name string) (string, error) {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(int(dir.Fd()), name, b[:])
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
