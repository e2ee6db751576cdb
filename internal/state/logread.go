package state

import (
	"encoding/binary"
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

// Chunk is a part of the output, with the time at which it was written, which is zero if it is not known. It may end within a line.
type Chunk struct {
	Stream Stream
	Text   []byte
	Time   time.Time
}

// LogReader reads the output of a detached command, while it runs or afterwards. It must not be used concurrently.
type LogReader struct {
	dir    string
	f      *os.File // nil before the first output was found
	offset int64
	plain  bool // a file of version 0.1: the text of both streams
}

// OpenLog returns a reader of the sandbox's output from the oldest that is kept on. The error is ErrNoLog, by errors.Is, if there is
// none. The caller must Close it.
func (d *Dir) OpenLog(r Record) (*LogReader, error) {
	l := &LogReader{dir: d.PathOf(r)}
	if err := l.open(oldLogFile); err == nil {
		return l, nil
	}
	err := l.open(LogFile)
	if errors.Is(err, fs.ErrNotExist) {
		if plain, err := openPlain(l.dir); err == nil {
			return plain, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &refError{"sandbox " + r.Name + " has no log: only the output of detached sandboxes is kept", ErrNoLog}
	}
	if err != nil {
		return nil, &Error{"log", err}
	}
	return l, nil
}

// Version 0.1 has written the text of both streams to one of these. A sandbox of that version may still run.
const (
	plainLogFile    = "output.log"
	oldPlainLogFile = "output.log.1"
)

// openPlain opens the log of a supervisor of version 0.1.
func openPlain(dir string) (*LogReader, error) {
	l := &LogReader{dir: dir, plain: true}
	if err := l.open(oldPlainLogFile); err == nil {
		return l, nil
	}
	return l, l.open(plainLogFile)
}

// names are the names of the newer and the older file.
func (l *LogReader) names() (newer, older string) {
	if l.plain {
		return plainLogFile, oldPlainLogFile
	}
	return LogFile, oldLogFile
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

// next is the name of the file that follows the one that is open; "" if it is the newest itself, or the directory was removed.
func (l *LogReader) next() string {
	ours, err := l.f.Stat()
	if err != nil {
		return ""
	}
	same := func(name string) (same, exists bool) {
		info, err := os.Stat(filepath.Join(l.dir, name))
		return err == nil && os.SameFile(ours, info), err == nil
	}
	newName, oldName := l.names()
	newest, exists := same(newName)
	older, hasOlder := same(oldName)
	switch {
	case newest || !exists && (older || !hasOlder):
		return ""
	case older || !hasOlder:
		return newName
	}
	return oldName
}

// rest reads the open file from the offset to its end.
func (l *LogReader) rest() ([]Chunk, error) {
	text, err := io.ReadAll(io.NewSectionReader(l.f, l.offset, logLimit+outputSlack))
	if err != nil {
		return nil, &Error{"log", err}
	}
	if l.plain && len(text) > 0 {
		l.offset += int64(len(text))
		return []Chunk{{Stream: Stdout, Text: text}}, nil
	}
	var chunks []Chunk
	for len(text) >= frameHeader {
		size := int64(binary.BigEndian.Uint32(text[4:])) + frameHeader
		if size > int64(len(text)) {
			break // it is being written, or the disk was full
		}
		at := time.Unix(0, int64(binary.BigEndian.Uint64(text[8:])))
		chunks = append(chunks, Chunk{Stream(text[0]), text[frameHeader:size], at})
		text, l.offset = text[size:], l.offset+size
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
