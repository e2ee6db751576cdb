package userns

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nameServiceDirs have sockets by which glibc bypasses resolv.conf, nscd's and nss-resolve's: they are covered by an empty
// directory.
var nameServiceDirs = []string{"/run/nscd", "/var/run/nscd", resolvedDir}

const resolvedDir = "/run/systemd/resolve"

// resolverDirs have other files than /etc/resolv.conf that list name servers, beside other things: they are mirrored. The host's
// /etc/resolv.conf may be a link to one of them, and some programs read them directly.
var resolverDirs = []string{networkManagerDir, "/run/resolvconf"}

const networkManagerDir = "/run/NetworkManager"

// resolverFiles are the names that name servers are listed under in the directory.
func resolverFiles(dir string) []string {
	switch dir {
	case resolvedDir:
		return []string{resolvConf, "stub-resolv.conf"}
	case networkManagerDir:
		return []string{resolvConf, "no-stub-resolv.conf"}
	}
	return []string{resolvConf}
}

// emptyOptions is for a directory that stays empty: one page, and inodes for the root and the few files that are made as mount
// points.
const emptyOptions = "mode=0755,size=4k,nr_inodes=8"

const (
	watchEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	watchFlags  = watchEvents | unix.IN_ONLYDIR

	// watchBuffer has room for many events; one takes at most 16 + NAME_MAX + 1 bytes.
	watchBuffer = 16 << 10
)

// followDelay is how long after the start the watches are added. The kernel takes 10 to 20 ms to close an inotify instance with
// watches (fsnotify_wait_marks_destroyed), which a command that ends before does not have to wait for.
const followDelay = time.Second

// fileWatch covers directories of the host and follows them by inotify: the entries of mirrors, and the appearance of directories
// that have to be covered. After start its goroutine alone uses the fields below the blank line.
type fileWatch struct {
	file *os.File // the inotify instance; nil if there is none
	stop chan struct{}
	wg   sync.WaitGroup

	mirrors  []*mirror
	parents  []string          // directories in which one may appear that has to be covered
	covers   map[string]uint64 // the device number of what covers the directory
	followed bool              // the watches have been added
	byWatch  map[int32]*mirror
	inParent map[int32]string // of parents, by watch descriptor
}

func newFileWatch(w *warnings) *fileWatch {
	f := &fileWatch{stop: make(chan struct{}), covers: make(map[string]uint64), byWatch: make(map[int32]*mirror), inParent: make(map[int32]string)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.add("changes of the host's files in /etc will not be seen inside: inotify: %v", err)
		return f
	}
	f.file = os.NewFile(uintptr(fd), "inotify")
	return f
}

// follow adds a watch for the directory and returns its descriptor.
func (f *fileWatch) follow(path string) (wd int32, err error) {
	c, err := f.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var werr error
	if err := c.Control(func(fd uintptr) { n, werr = unix.InotifyAddWatch(int(fd), path, watchFlags) }); err != nil {
		return 0, err
	}
	return int32(n), werr
}

// mount mounts a mirror, which is followed with the others, and closed in the end or on an error.
func (f *fileWatch) mount(m *mirror, fill fillFunc) error {
	if err := m.mount(fill); err != nil || f.file == nil {
		m.close()
		return err
	}
	f.mirrors = append(f.mirrors, m)
	if f.followed {
		f.followMirror(m)
	}
	return nil
}

func (f *fileWatch) followMirror(m *mirror) {
	if wd, err := f.follow(procFD(m.host)); err == nil {
		f.byWatch[wd] = m
	}
	m.refreshAll()
}

// coverNameServices covers the directories that exist. Those that appear later are covered then.
func (f *fileWatch) coverNameServices(w *warnings) {
	for _, dir := range slices.Concat(nameServiceDirs, resolverDirs) {
		if real, err := filepath.EvalSymlinks(filepath.Dir(dir)); err == nil && !slices.Contains(f.parents, real) {
			f.parents = append(f.parents, real)
		}
		if err := f.cover(dir); err != nil {
			w.add("cannot cover %s, names may be looked up by the host: %v", dir, err)
		}
	}
}

// cover covers one of nameServiceDirs or resolverDirs, unless it does not exist or is covered.
func (f *fileWatch) cover(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil || dir != real && slices.Contains(nameServiceDirs, real) { // /var/run is a link to /run
		return nil
	}
	if slices.Contains(resolverDirs, dir) {
		err = f.coverByMirror(real, resolverFiles(dir))
	} else if err = unix.Mount("tmpfs", real, "tmpfs", mirrorFlags, emptyOptions); err == nil && dir == resolvedDir {
		err = placeResolvConf(real, resolverFiles(dir))
	}
	if dev, derr := deviceOf(real); err == nil && derr == nil {
		f.covers[real] = dev
	}
	return err
}

func (f *fileWatch) coverByMirror(dir string, names []string) error {
	ours := make(map[string]bool)
	for _, name := range names {
		ours[name] = true
	}
	m, err := newMirror(dir, ours)
	if err != nil {
		return err
	}
	return f.mount(m, func(_ *mirror, at string) error { return placeResolvConf(at, names) })
}

// placeResolvConf bind-mounts our resolv.conf under each of the names into a directory that is ours.
func placeResolvConf(dir string, names []string) error {
	for _, name := range names {
		if err := bindEntry(filepath.Join(etc, resolvConf), filepath.Join(dir, name), false); err != nil {
			return err
		}
	}
	return nil
}

// start starts the goroutine.
func (f *fileWatch) start() {
	if f.file != nil {
		f.wg.Go(f.run)
	}
}

// close ends the goroutine.
func (f *fileWatch) close() {
	close(f.stop)
	if f.file != nil {
		f.file.Close()
	}
	f.wg.Wait()
	for _, m := range f.mirrors {
		m.close()
	}
}

func (f *fileWatch) run() {
	select {
	case <-time.After(followDelay):
	case <-f.stop:
		return
	}
	f.followed = true
	for _, dir := range f.parents {
		if wd, err := f.follow(dir); err == nil {
			f.inParent[wd] = dir
		}
	}
	for _, m := range f.mirrors {
		f.followMirror(m)
	}
	for _, dir := range slices.Concat(nameServiceDirs, resolverDirs) {
		f.appeared(dir)
	}
	buf := make([]byte, watchBuffer)
	for {
		n, err := f.file.Read(buf)
		if err != nil {
			return
		}
		f.handle(buf[:n])
	}
}

// handle does what a buffer of inotify events asks for, with the names of one mirror together.
func (f *fileWatch) handle(buf []byte) {
	names := make(map[int32][]string)
	overflow := false
	for len(buf) >= unix.SizeofInotifyEvent {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0]))
		end := unix.SizeofInotifyEvent + int(e.Len)
		if end > len(buf) {
			break
		}
		name := strings.TrimRight(string(buf[unix.SizeofInotifyEvent:end]), "\x00")
		buf = buf[end:]
		switch {
		case e.Mask&unix.IN_Q_OVERFLOW != 0:
			overflow = true
		case e.Mask&unix.IN_IGNORED != 0: // the host has removed the directory
			f.removed(e.Wd)
		case f.byWatch[e.Wd] != nil:
			names[e.Wd] = append(names[e.Wd], name)
		case f.inParent[e.Wd] != "" && e.Mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
			f.appeared(filepath.Join(f.inParent[e.Wd], name))
		}
	}
	for wd, list := range names {
		if m := f.byWatch[wd]; m != nil {
			m.refresh(list)
		}
	}
	if overflow {
		for _, m := range f.mirrors {
			m.refreshAll()
		}
	}
}

// removed forgets a directory.
func (f *fileWatch) removed(wd int32) {
	if m := f.byWatch[wd]; m != nil {
		m.close()
		f.mirrors = slices.DeleteFunc(f.mirrors, func(o *mirror) bool { return o == m })
	}
	delete(f.byWatch, wd)
	delete(f.inParent, wd)
}

// appeared covers a directory that is to be covered, unless it is.
func (f *fileWatch) appeared(path string) {
	if !f.wanted(path) || f.covered(path) {
		return
	}
	_ = f.cover(path) // an error: it is the host's, as a directory that cannot be covered at the start
}

func (f *fileWatch) wanted(path string) bool {
	return len(f.parents) > 0 && (slices.Contains(nameServiceDirs, path) || slices.Contains(resolverDirs, path))
}

// covered says whether what we mounted over the directory is still there; it goes when the host removes the directory.
func (f *fileWatch) covered(path string) bool {
	dev, err := deviceOf(path)
	return err == nil && f.covers[path] == dev
}

func deviceOf(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return uint64(st.Dev), err
}
