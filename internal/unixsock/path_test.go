package unixsock

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestShortPath: a socket in a directory with a path of any length can be opened and connected to through its short path.
func TestShortPath(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("d", 120))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "s"), filepath.Join(long, strings.Repeat("x", 64))} {
		short, done, err := ShortPath(path)
		if err != nil || len(short) > MaxPath || len(path) <= MaxPath && short != path {
			t.Fatalf("%q becomes %q, %v", path, short, err)
		}
		defer done()
		l, err := net.Listen("unix", short)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		again, done2, err := ShortPath(path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unix", again)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		done2()
	}
	if _, _, err := ShortPath(filepath.Join(long, "none", "s")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}
