package state

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// indexPrefix and an inode number are the name of the index of the log file with that inode. A reader that has opened a log file
// finds its index also after the log was renamed.
const indexPrefix = "output.times."

// maxIndex bounds the entries of an index: 96 KiB, a fortieth of the log file. An index that is full is halved, see halve.
const maxIndex = 4096

// indexEntry says when the bytes of a log file from an offset on, up to the next entry, were written.
type indexEntry struct {
	offset      int64
	first, last int64 // Unix time in nanoseconds of the first and the last write
}

// entrySize is the size of an indexEntry in the file: three little-endian numbers of 64 bits.
const entrySize = 24

func (x indexEntry) append(text []byte) []byte {
	for _, n := range []int64{x.offset, x.first, x.last} {
		text = binary.LittleEndian.AppendUint64(text, uint64(n))
	}
	return text
}

// logIndex writes the index of one log file. Its failures are ignored: without an entry, the bytes count to the entry before. nil
// is an index that could not be made.
type logIndex struct {
	path    string
	f       *os.File
	entries []indexEntry
}

// indexPath is the path of the index of the log file at path.
func indexPath(dir, log string) (string, error) {
	info, err := os.Stat(log)
	if err != nil {
		return "", err
	}
	return indexOf(dir, info)
}

func indexOf(dir string, log fs.FileInfo) (string, error) {
	st, ok := log.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.ErrUnsupported
	}
	return filepath.Join(dir, indexPrefix+strconv.FormatUint(st.Ino, 10)), nil
}

// newLogIndex makes an empty index of the log file.
func newLogIndex(dir string, log *os.File) *logIndex {
	info, err := log.Stat()
	if err != nil {
		return nil
	}
	path, err := indexOf(dir, info)
	if err != nil {
		return nil
	}
	x := &logIndex{path: path}
	x.f, _ = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	return x
}

func (x *logIndex) close() {
	if x != nil && x.f != nil {
		x.f.Close()
		x.f = nil
	}
}

// add enters a write that begins at the offset.
func (x *logIndex) add(offset int64, now time.Time) {
	if x == nil || x.f == nil {
		return
	}
	if len(x.entries) >= maxIndex {
		x.halve()
		if x.f == nil {
			return
		}
	}
	e := indexEntry{offset, now.UnixNano(), now.UnixNano()}
	x.entries = append(x.entries, e)
	_, _ = x.f.Write(e.append(nil))
}

// halve joins each two entries. The range of times of the result holds those of both, so that a reader knows that it is not exact;
// the older the output, the wider the ranges. The file is replaced, because a reader may be reading it.
func (x *logIndex) halve() {
	joined := x.entries[:0]
	for pair := range slices.Chunk(x.entries, 2) {
		joined = append(joined, indexEntry{pair[0].offset, pair[0].first, pair[len(pair)-1].last})
	}
	x.entries = joined
	var text []byte
	for _, e := range x.entries {
		text = e.append(text)
	}
	x.close()
	if err := os.WriteFile(x.path+".new", text, 0o600); err != nil {
		os.Remove(x.path + ".new")
		return
	}
	if os.Rename(x.path+".new", x.path) == nil {
		x.f, _ = os.OpenFile(x.path, os.O_WRONLY|os.O_APPEND, 0o600)
	}
}

// readIndex reads the index of an open log file. It may be empty.
func readIndex(dir string, log *os.File) (entries []indexEntry) {
	info, err := log.Stat()
	if err != nil {
		return nil
	}
	path, err := indexOf(dir, info)
	if err != nil {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for ; len(text) >= entrySize; text = text[entrySize:] {
		number := func(i int) int64 { return int64(binary.LittleEndian.Uint64(text[8*i:])) }
		e := indexEntry{number(0), number(1), number(2)}
		// A write that failed, on a full disk, has left an entry without text.
		for len(entries) > 0 && entries[len(entries)-1].offset >= e.offset {
			entries = entries[:len(entries)-1]
		}
		entries = append(entries, e)
	}
	return entries
}
