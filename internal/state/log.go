package state

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// logLimit is the most that output.log holds, in bytes. XDG_RUNTIME_DIR is memory, by systemd's default a tenth of the
// machine's for all that the user's programs keep there (logind.conf(5), RuntimeDirectorySize): with twice this a sandbox is
// a small part of it even where that is 100 MB, and some 40,000 lines of a server are there at any time.
const logLimit = 4 << 20

// Log keeps what a detached command wrote last: in output.log and, once that was full, what came before it in output.log.1.
// The command does not have the file itself, which could then not be bounded, and which it would empty by opening
// /dev/stderr. A line may begin in the one and end in the other. The methods are for one goroutine at a time.
type Log struct {
	dir   string
	limit int64
	f     *os.File // nil where it could not be made anew
	size  int64
}

// OpenLog makes the file that a detached command's output is kept in. It goes with the directory; the caller must Close it
// before the Entry.
func (e *Entry) OpenLog() (*Log, error) {
	l := &Log{dir: e.path, limit: logLimit}
	if err := l.open(); err != nil {
		return nil, &Error{"create", err}
	}
	return l, nil
}

func (l *Log) open() (err error) {
	// Emptied if it is there: it is when it was full, and could not be renamed.
	l.f, err = os.OpenFile(filepath.Join(l.dir, logFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	l.size = 0
	return err
}

// Write keeps p. What cannot be kept (no room on the disk, no descriptor) is lost, and is no error: the command goes on.
func (l *Log) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(int64(len(rest)), l.limit-l.size)
		if n == 0 {
			l.f.Close()
			_ = os.Rename(filepath.Join(l.dir, logFile), filepath.Join(l.dir, oldLogFile))
			_ = l.open()
			continue
		}
		if l.f != nil || l.open() == nil {
			written, _ := l.f.Write(rest[:n])
			l.size += int64(written)
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// Close lets the file go.
func (l *Log) Close() error { return l.f.Close() }
