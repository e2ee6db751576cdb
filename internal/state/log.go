package state

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// logLimit is the maximum size of output.log in bytes; output.log.1 has the same. XDG_RUNTIME_DIR is in memory: by default
// systemd gives all programs of a user a tenth of the machine's memory there (logind.conf(5), RuntimeDirectorySize). The two files
// of a sandbox are a small part of that even if it is only 100 MB, and hold at least 40,000 lines of 100 bytes.
const logLimit = 4 << 20

// Log keeps the latest output of a detached command in output.log. When that file is full it becomes output.log.1, in place of
// the previous one. The command writes to a pipe and not to the file: its size could not be limited otherwise, and a command that
// opens /dev/stderr would truncate it. A line may be split between the two files. Beside each of the files is an index of times
// (logIndex). The methods must not be called concurrently.
type Log struct {
	dir   string
	limit int64
	f     *os.File // nil after it could not be made again
	size  int64    // of f
	index *logIndex
}

// OpenLog makes the file for the output of a detached command. Entry.Close removes it; the caller must Close the Log before
// that.
func (e *Entry) OpenLog() (*Log, error) {
	l := &Log{dir: e.path, limit: logLimit}
	if err := l.open(); err != nil {
		return nil, &Error{"create", err}
	}
	return l, nil
}

func (l *Log) open() (err error) {
	// The file exists if it was full and could not be renamed. It is then truncated.
	l.f, err = os.OpenFile(filepath.Join(l.dir, logFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	l.size = 0
	l.index.close()
	l.index = nil
	if err == nil {
		l.index = newLogIndex(l.dir, l.f)
	}
	return err
}

// rotate makes a full output.log the older file.
func (l *Log) rotate() {
	l.f.Close()
	older := filepath.Join(l.dir, oldLogFile)
	if index, err := indexPath(l.dir, older); err == nil {
		os.Remove(index)
	}
	_ = os.Rename(filepath.Join(l.dir, logFile), older)
	_ = l.open()
}

// Write appends p. It discards what it cannot write, for lack of space or of a descriptor, and reports success nevertheless, so
// that the command continues.
func (l *Log) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(int64(len(rest)), l.limit-l.size)
		if n == 0 {
			l.rotate()
			continue
		}
		if l.f != nil || l.open() == nil {
			l.index.add(l.size, time.Now()) // before the text, so that a reader finds the entry of what it reads
			written, _ := l.f.Write(rest[:n])
			l.size += int64(written)
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// Close closes the files.
func (l *Log) Close() error {
	l.index.close()
	return l.f.Close()
}
