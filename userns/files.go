package userns

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	etc          = "/etc"
	resolvConf   = "resolv.conf"
	hostsFile    = "hosts"
	hostnameFile = "hostname"
	nsswitch     = "nsswitch.conf"

	// maxNsswitch bounds what is read of nsswitch.conf; a real one is under 1 KiB.
	maxNsswitch = 64 << 10
)

// fileSet holds our files in the mirror of /etc, open for writing. All mounts of one are of the same inode, so that a write
// changes what the command sees, and every process that joined the sandbox.
type fileSet struct {
	resolv, hosts *os.File
	watch         *fileWatch // nil: nothing of the host is followed
}

// etcFile is one file of the mirror of /etc.
type etcFile struct {
	name string
	text []byte
	keep **os.File // gets the file, which is closed if it is nil
}

// mount covers /etc by a mirror with the files of f, and the other places where programs look for name servers.
func (s *fileSet) mount(f *Files, w *warnings) error {
	var list []etcFile
	ours := make(map[string]bool)
	add := func(name string, text []byte, keep **os.File) {
		ours[name] = true
		if text != nil {
			list = append(list, etcFile{name, text, keep})
		}
	}
	if f.ResolvConf != nil {
		add(resolvConf, f.ResolvConf, &s.resolv)
		// Ours even if the host has none or its file needs no change: it may get or change one later.
		add(nsswitch, ourNsswitch(), nil)
	}
	if f.Hosts != nil {
		add(hostsFile, f.Hosts, &s.hosts)
	}
	if f.Hostname != "" {
		add(hostnameFile, []byte(f.Hostname+"\n"), nil)
	}
	if len(list) == 0 {
		return nil
	}
	m, err := newMirror(etc, ours)
	if err != nil {
		w.add("the sandbox has no files of its own in %s: %v", etc, err)
		return nil
	}
	s.watch = newFileWatch(w)
	err = s.watch.mount(m, func(m *mirror, dir string) error {
		for _, file := range list {
			if err := file.create(m, dir); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return mountError("cover "+etc, err)
	}
	if f.ResolvConf != nil {
		s.watch.coverNameServices(w)
	}
	s.watch.start()
	return nil
}

// create makes the file in m, which is being built at dir. It is bind-mounted on itself, since the mirror becomes read-only but the
// file may be written by the command: VPN and DHCP clients do so. The file that is kept is of another mount, so that it may be
// written whatever becomes of the mount that the command sees.
func (e *etcFile) create(m *mirror, dir string) error {
	fd, err := unix.Openat(int(m.own.Fd()), e.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), e.name)
	// Readable despite any umask, since resolvers run as any user.
	if err = file.Chmod(0o644); err == nil {
		err = rewrite(file, e.text)
	}
	if err == nil {
		path := filepath.Join(dir, e.name)
		err = bind(path, path, 0)
	}
	if err != nil || e.keep == nil {
		return errors.Join(err, file.Close())
	}
	*e.keep = file
	return nil
}

// mountError is err as an *Error.
func mountError(op string, err error) error {
	var ours *Error
	if errors.As(err, &ours) {
		return ours
	}
	return &Error{Op: op, Err: unwrapErrno(err)}
}

// close ends the goroutine that follows the host's directories.
func (s *fileSet) close() {
	if s != nil && s.watch != nil {
		s.watch.close()
	}
}

// update writes the texts of f that are not nil.
func (s *fileSet) update(f *Files) error {
	if s == nil {
		s = new(fileSet) // a command that joined a sandbox has no files of its own
	}
	for _, e := range []struct {
		file *os.File
		text []byte
		name string
	}{{s.resolv, f.ResolvConf, resolvConf}, {s.hosts, f.Hosts, hostsFile}} {
		if e.text == nil {
			continue
		}
		if e.file == nil {
			return &Error{Op: "rewrite " + etc + "/" + e.name, Err: unix.ENOENT}
		}
		if err := rewrite(e.file, e.text); err != nil {
			return &Error{Op: "rewrite " + etc + "/" + e.name, Err: unwrapErrno(err)}
		}
	}
	return nil
}

// rewrite replaces the text in one write, and then truncates the file to the new length. In the other order a reader could see
// an empty file.
func rewrite(f *os.File, text []byte) error {
	if len(text) > 0 {
		if _, err := f.WriteAt(text, 0); err != nil {
			return err
		}
	}
	return f.Truncate(int64(len(text)))
}

// ourNsswitch returns the text of nsswitch.conf for the sandbox, nil if the host has none.
func ourNsswitch() []byte {
	f, err := os.Open(filepath.Join(etc, nsswitch))
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxNsswitch))
	if err != nil {
		return nil
	}
	if out, changed := filterNsswitch(text); changed {
		return out
	}
	return text
}
