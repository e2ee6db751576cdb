package main

import (
	"fmt"
	"os"
	"sync"
)

// logFile is a log file of limited size: when a line would exceed the limit, the older half of the file is deleted first. Its
// methods may be called concurrently.
type logFile struct {
	max int64 // bytes

	mu   sync.Mutex
	f    *os.File
	size int64 // guarded by mu
}

func newLogFile(path string, max int64) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	return &logFile{max: max, f: f}, nil
}

// Write adds one line.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(b)) > l.max {
		if err := l.cut(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.WriteAt(b, l.size)
	l.size += int64(n)
	return n, err
}

// cut deletes the older half of the file and the rest of the line that the cut falls into. The caller holds mu.
func (l *logFile) cut() error {
	keep := make([]byte, l.size/2)
	n, _ := l.f.ReadAt(keep, l.size-int64(len(keep)))
	keep = keep[:n]
	for i, c := range keep {
		if c == '\n' {
			keep = keep[i+1:]
			break
		}
	}
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	n, err := l.f.WriteAt(keep, 0)
	l.size = int64(n)
	return err
}
