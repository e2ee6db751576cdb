package userns

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileSet holds the files bound over /etc, open for writing. Every bind is of the same inode: writing it changes what
// the command, and everyone who joined, sees.
type fileSet struct {
	resolv, hosts *os.File
}

// mount makes the files of f and binds them into place.
func (s *fileSet) mount(f *Files, w *warnings) error {
	filtered := filteredNsswitch()
	if f.ResolvConf == nil && f.Hosts == nil && filtered == nil {
		return nil
	}
	return stage(func(dir string) error {
		create := func(name string, text []byte) (*os.File, error) {
			file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
			if err == nil {
				// Against any umask: resolvers run as whoever.
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
		s = new(fileSet) // a command that entered a sandbox has none of its own
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

// rewrite replaces the text in one write, and cuts what is left of the old one after that: a reader never sees an empty
// file, as it would the other way round.
func rewrite(f *os.File, text []byte) error {
	if len(text) > 0 {
		if _, err := f.WriteAt(text, 0); err != nil {
			return err
		}
	}
	return f.Truncate(int64(len(text)))
}

// filteredNsswitch returns the text for the sandbox, nil where the host's can stay.
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
