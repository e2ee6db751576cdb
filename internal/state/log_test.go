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

// contents reads the two files and checks that neither is larger than the limit.
func (l *Log) contents(t *testing.T) (older, newer string) {
	t.Helper()
	var texts [2]string
	for i, name := range []string{oldLogFile, logFile} {
		text, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if int64(len(text)) > l.limit {
			t.Errorf("%s has %d bytes", name, len(text))
		}
		texts[i] = string(text)
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
			if got, err := l.Write(rest[:n]); got != n || err != nil {
				t.Fatal(got, err)
			}
			rest = rest[n:]
		}
		older, newer := l.contents(t)
		if !strings.HasSuffix(all.String(), older+newer) || int64(len(older)) != l.limit || newer == "" {
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
	write := func(text string) {
		t.Helper()
		if n, err := l.Write([]byte(text)); n != len(text) || err != nil {
			t.Error(n, err)
		}
	}
	for range 30 {
		write("nine here\n")
	}
	write("one more\nthe last\n")
	if text, err := os.ReadFile(filepath.Join(l.dir, logFile)); err != nil || len(text) > 100 || !strings.HasSuffix(string(text), "one more\nthe last\n") {
		t.Errorf("%q, %v", text, err)
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
