package userns

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

// fileWatch follows directories of the host by inotify: the entries of mirrors, and the appearance of directories that have to
// be covered. After start its goroutine alone uses the fields below the blank line.
type fileWatch struct {
	file *os.File // the inotify instance; nil if there is none
	wg   sync.WaitGroup

	mirrors map[int32]*mirror // by watch descriptor
	parents map[int32]string  // directories in which one may appear
}

func newFileWatch(w *warnings) *fileWatch {
	f := &fileWatch{mirrors: make(map[int32]*mirror), parents: make(map[int32]string)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.add("changes of the host's files in /etc will not be seen inside: inotify: %v", err)
		return f
	}
	f.file = os.NewFile(uintptr(fd), "inotify")
	return f
}

// follow adds a watch for the directory and returns its descriptor.
func (f *fileWatch) follow(path string) (wd int32, ok bool) {
	if f.file == nil {
		return 0, false
	}
	c, err := f.file.SyscallConn()
	if err != nil {
		return 0, false
	}
	var n int
	var werr error
	err = c.Control(func(fd uintptr) { n, werr = unix.InotifyAddWatch(int(fd), path, watchFlags) })
	return int32(n), err == nil && werr == nil
}

// mirror mounts a mirror and follows it; what changes meanwhile is seen by start.
func (f *fileWatch) mirror(path string, ours map[string]bool, fill func(dir string) error) error {
	m, err := newMirror(path, ours)
	if err != nil {
		return err
	}
	wd, followed := f.follow(procFD(m.host))
	if err = m.mount(fill); err != nil || !followed {
		m.close()
		return err
	}
	f.mirrors[wd] = m
	return nil
}

// coverNameServices covers the directories that exist, and has those that appear later covered then.
func (f *fileWatch) coverNameServices(w *warnings) {
	var parents []string
	for _, dir := range slices.Concat(nameServiceDirs, resolverDirs) {
		real, err := filepath.EvalSymlinks(filepath.Dir(dir))
		if err != nil {
			continue
		}
		if !slices.Contains(parents, real) {
			parents = append(parents, real)
			if wd, ok := f.follow(real); ok {
				f.parents[wd] = real
			}
		}
	}
	for _, dir := range slices.Concat(nameServiceDirs, resolverDirs) {
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
		return f.coverByMirror(real, resolverFiles(dir))
	}
	if err := unix.Mount("tmpfs", real, "tmpfs", mirrorFlags, emptyOptions); err != nil {
		return err
	}
	if dir == resolvedDir {
		return placeResolvConf(real, resolverFiles(dir))
	}
	return nil
}

func (f *fileWatch) coverByMirror(dir string, names []string) error {
	ours := make(map[string]bool)
	for _, name := range names {
		ours[name] = true
	}
	return f.mirror(dir, ours, func(at string) error { return placeResolvConf(at, names) })
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
	if f.file != nil {
		f.file.Close()
	}
	f.wg.Wait()
	for _, m := range f.mirrors {
		m.close()
	}
}

func (f *fileWatch) run() {
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
			if m := f.mirrors[e.Wd]; m != nil {
				m.close()
			}
			delete(f.mirrors, e.Wd)
			delete(f.parents, e.Wd)
		case f.mirrors[e.Wd] != nil:
			names[e.Wd] = append(names[e.Wd], name)
		case f.parents[e.Wd] != "" && e.Mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
			f.appeared(filepath.Join(f.parents[e.Wd], name))
		}
	}
	for wd, list := range names {
		if m := f.mirrors[wd]; m != nil {
			m.refresh(list)
		}
	}
	if overflow {
		for _, m := range f.mirrors {
			m.refreshAll()
		}
	}
}

// appeared covers a directory that is to be covered.
func (f *fileWatch) appeared(path string) {
	if slices.Contains(nameServiceDirs, path) || slices.Contains(resolverDirs, path) {
		_ = f.cover(path) // an error: it is the host's, as a directory that cannot be covered at the start
	}
}
