package state

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoLog: the sandbox has no log. Only the output of detached sandboxes is kept.
var ErrNoLog = errors.New("no log")

// Chunk is a part of the output with the time at which it was written: some time from First to Last, which are the same unless the
// output is old and long. They are zero if it is not known. A chunk may end within a line.
type Chunk struct {
	Text        []byte
	First, Last time.Time
}

// LogReader reads the output of a detached command, while it runs or afterwards. It must not be used concurrently.
type LogReader struct {
	dir    string
	f      *os.File // nil before the first output was found
	offset int64
}

// OpenLog returns a reader of the sandbox's output from the oldest that is kept on. The error is ErrNoLog, by errors.Is, if there is
// none. The caller must Close it.
func (d *Dir) OpenLog(r Record) (*LogReader, error) {
	l := &LogReader{dir: d.PathOf(r)}
	if err := l.open(oldLogFile); err == nil {
		return l, nil
	}
	err := l.open(logFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &refError{"sandbox " + r.Name + " has no log: only the output of detached sandboxes is kept", ErrNoLog}
	}
	if err != nil {
		return nil, &Error{"log", err}
	}
	return l, nil
}

// open takes one of the two files as the one to read.
func (l *LogReader) open(name string) error {
	f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	l.Close()
	l.f, l.offset = f, 0
	return nil
}

// Read returns what was written since the last call, or everything that is kept; nothing if there is nothing new. The reader of
// a log that is written faster than it is read misses what was rotated away meanwhile.
func (l *LogReader) Read() (chunks []Chunk, err error) {
	for {
		// Whether the file is still the newest one is asked before it is read to its end: it is complete if it is not.
		next := l.next()
		more, err := l.rest()
		chunks = append(chunks, more...)
		if err != nil || next == "" {
			return chunks, err
		}
		if err := l.open(next); err != nil {
			return chunks, nil // the sandbox was removed
		}
	}
}

// next is the name of the file that follows the one that is open; "" if it is output.log itself, or the directory was removed.
func (l *LogReader) next() string {
	ours, err := l.f.Stat()
	if err != nil {
		return ""
	}
	same := func(name string) (same, exists bool) {
		info, err := os.Stat(filepath.Join(l.dir, name))
		return err == nil && os.SameFile(ours, info), err == nil
	}
	newest, exists := same(logFile)
	older, hasOlder := same(oldLogFile)
	switch {
	case newest || !exists && (older || !hasOlder):
		return ""
	case older || !hasOlder:
		return logFile
	}
	return oldLogFile
}

// rest reads the open file from the offset to its end.
func (l *LogReader) rest() ([]Chunk, error) {
	text, err := io.ReadAll(io.NewSectionReader(l.f, l.offset, logLimit+outputSlack))
	if err != nil {
		return nil, &Error{"log", err}
	}
	if len(text) == 0 {
		return nil, nil
	}
	// The index is read after the text and written before it, so it has the entry of every byte.
	entries := readIndex(l.dir, l.f)
	start, end := l.offset, l.offset+int64(len(text))
	l.offset = end
	var chunks []Chunk
	add := func(from, to int64, first, last time.Time) {
		if from, to = max(from, start), min(to, end); from < to {
			chunks = append(chunks, Chunk{text[from-start : to-start], first, last})
		}
	}
	if len(entries) == 0 {
		add(start, end, time.Time{}, time.Time{})
		return chunks, nil
	}
	add(0, entries[0].offset, time.Time{}, time.Time{})
	for i, e := range entries {
		to := end
		if i+1 < len(entries) {
			to = entries[i+1].offset
		}
		add(e.offset, to, time.Unix(0, e.first), time.Unix(0, e.last))
	}
	return chunks, nil
}

// outputSlack is what a log file may be larger than logLimit: nothing, by Log.Write. It is for files of other versions.
const outputSlack = 1 << 20

// Close closes the file.
func (l *LogReader) Close() error {
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}
