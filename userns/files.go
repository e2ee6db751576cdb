package userns

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileSet holds the files that are bind-mounted over those of /etc, open for writing. All bind mounts are of the same inode, so
// that a write changes what the command sees, and every process that joined the sandbox.
type fileSet struct {
	resolv, hosts *os.File
}

// mount makes the files of f and bind-mounts them.
func (s *fileSet) mount(f *Files, w *warnings) error {
	filtered := filteredNsswitch()
	if f.ResolvConf == nil && f.Hosts == nil && filtered == nil {
		return nil
	}
	return stage(func(dir string) error {
		create := func(name string, text []byte) (*os.File, error) {
			file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
			if err == nil {
				// Readable despite any umask, since resolvers run as any user.
				if err = file.Chmod(0o644); err == nil {
					err = rewrite(file, text)
				}
			}
			if err != nil {
				return nil, &Error{Op: "write " + name + " of the sandbox", Err: unwrapErrno(err)}
			}
			return file, nil
		}
		var err error
		ours := ""
		if f.ResolvConf != nil {
			ours = filepath.Join(dir, "resolv.conf")
			if s.resolv, err = create("resolv.conf", f.ResolvConf); err != nil {
				return err
			}
		}
		if ours != "" {
			coverNameServices(ours, w)
			bindOver(ours, resolvConf, w)
		}
		if f.Hosts != nil {
			if s.hosts, err = create("hosts", f.Hosts); err != nil {
				return err
			}
			bindOver(filepath.Join(dir, "hosts"), hostsFile, w)
		}
		if filtered != nil && ours != "" {
			file, err := create("nsswitch.conf", filtered)
			if err != nil {
				return err
			}
			file.Close()
			bindOver(filepath.Join(dir, "nsswitch.conf"), nsswitch, w)
		}
		return nil
	})
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
			return &Error{Op: "rewrite " + e.name, Err: unix.ENOENT}
		}
		if err := rewrite(e.file, e.text); err != nil {
			return &Error{Op: "rewrite " + e.name, Err: unwrapErrno(err)}
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

// filteredNsswitch returns the text of nsswitch.conf for the sandbox, nil if the host's file can be used.
func filteredNsswitch() []byte {
	f, err := os.Open(nsswitch)
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
	return nil
}
