package state

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// logLimit is the maximum size of output.frames in bytes; output.frames.1 has the same. XDG_RUNTIME_DIR is in memory: by default
// systemd gives all programs of a user a tenth of the machine's memory there (logind.conf(5), RuntimeDirectorySize). The two files
// of a sandbox are a small part of that even if it is only 100 MB, and hold at least 35,000 lines of 100 bytes.
const logLimit = 4 << 20

// Stream is what a command has written to.
type Stream uint8

// Streams have the numbers of their descriptors.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// A frame is what was read at once of one stream: a header, and the text. The header has the stream, three zeros, the size of the text in
// 32 bits, and the Unix time in nanoseconds in 64 bits, both big-endian; but for the time it is that of Docker's multiplexed streams.
const frameHeader = 16

// appendFrame appends a frame.
func appendFrame(b []byte, s Stream, at time.Time, text []byte) []byte {
	b = append(b, byte(s), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
	return append(b, text...)
}

// Log keeps the latest output of a detached command in output.frames. When that file is full it becomes output.frames.1, in place of
// the previous one. The command writes to pipes and not to the file: its size could not be limited otherwise, a command that
// opens /dev/stderr would truncate it, and the two streams could not be told apart. A line may be split between frames, and between
// the two files. The methods may be called concurrently.
type Log struct {
	dir   string
	limit int64

	mu    sync.Mutex
	f     *os.File // nil after it could not be made again; guarded by mu
	size  int64    // of f; guarded by mu
	frame []byte   // guarded by mu
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
	l.f, err = os.OpenFile(filepath.Join(l.dir, LogFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	l.size = 0
	return err
}

// rotate makes a full file the older one.
func (l *Log) rotate() {
	l.f.Close()
	_ = os.Rename(filepath.Join(l.dir, LogFile), filepath.Join(l.dir, oldLogFile))
	_ = l.open()
}

// Write appends what was read of a stream. It discards what it cannot write, for lack of space or of a descriptor, so that the command
// continues.
func (l *Log) Write(s Stream, text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for now := time.Now(); len(text) > 0; {
		n := min(int64(len(text)), l.limit-l.size-frameHeader)
		if n <= 0 {
			l.rotate()
			continue
		}
		if l.f != nil || l.open() == nil {
			l.frame = appendFrame(l.frame[:0], s, now, text[:n])
			l.append()
		}
		text = text[n:]
	}
}

// append writes the frame, or nothing of it: on a full disk a part of it would hide those that follow.
func (l *Log) append() {
	n, err := l.f.Write(l.frame)
	if err != nil && n > 0 && l.f.Truncate(l.size) == nil {
		return
	}
	l.size += int64(n)
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
