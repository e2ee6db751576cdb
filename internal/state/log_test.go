package state

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// smallLog is limited to 100 bytes in each of its files.
func smallLog(t *testing.T) *Log {
	t.Helper()
	l, err := create(t, open(t), "").OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	l.limit = 100
	t.Cleanup(func() { l.Close() })
	return l
}

// contents reads the texts in the two files and checks that neither is larger than the limit.
func (l *Log) contents(t *testing.T) (older, newer string) {
	t.Helper()
	var texts [2]string
	for i, name := range []string{oldLogFile, LogFile} {
		path := filepath.Join(l.dir, name)
		info, err := os.Stat(path)
		if err != nil || info.IsDir() {
			continue
		}
		if info.Size() > l.limit {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
		r := &LogReader{dir: l.dir}
		if err := r.open(name); err != nil {
			t.Fatal(err)
		}
		chunks, err := r.rest()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		texts[i] = text(chunks)
	}
	return texts[0], texts[1]
}

// TestLogKeepsTheEnd writes the same text in chunks of different sizes. The two files together must hold the end of the text
// without a gap, and the older one must be full.
func TestLogKeepsTheEnd(t *testing.T) {
	var all strings.Builder
	for i := range 100 {
		fmt.Fprintf(&all, "line %d %s\n", i, strings.Repeat("x", i%30))
	}
	for _, chunk := range []int{1, 7, 99, 100, 101, 250, all.Len()} {
		l := smallLog(t)
		for rest := []byte(all.String()); len(rest) > 0; {
			n := min(chunk, len(rest))
			l.Write(Stdout, rest[:n])
			rest = rest[n:]
		}
		older, newer := l.contents(t)
		info, err := os.Stat(filepath.Join(l.dir, oldLogFile))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(all.String(), older+newer) || l.limit-info.Size() > frameHeader || older == "" || newer == "" {
			t.Errorf("chunks of %d: %q, %q", chunk, older, newer)
		}
	}
}

// TestLogAfterFailures: the size stays limited if the older file cannot be replaced, and writing succeeds and discards the text
// while the file cannot be made.
func TestLogAfterFailures(t *testing.T) {
	l := smallLog(t)
	inTheWay := filepath.Join(l.dir, oldLogFile)
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(text string) { l.Write(Stderr, []byte(text)) }
	for range 30 {
		write("nine here\n")
	}
	write("one more\nthe last\n")
	if _, newer := l.contents(t); !strings.HasSuffix(newer, "one more\nthe last\n") {
		t.Errorf("%q", newer)
	}
	away := l.dir + ".away"
	if err := os.Rename(l.dir, away); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		write("lost here\n")
	}
	if err := os.Rename(away, l.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	write("it is back\n")
	if _, newer := l.contents(t); newer != "it is back\n" {
		t.Errorf("%q", newer)
	}
}
