package procstat

import (
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"
)

// rest are the fields from 5 on, with utime 50, stime 25 and starttime 4711.
const rest = " 7 7 0 -1 4194304 1 2 3 4 50 25 6 7 20 0 1 0 4711 0 0\n"

func TestParse(t *testing.T) {
	for in, parent := range map[string]int{
		"12 (sh) S 7" + rest:                       7,
		"12 (a) S 99) b) R 8" + rest:               8,
		"12 (new\nline ( ) ) S 3" + rest:           3,
		"12 (a b) Z 0" + rest:                      0,
		"7 (x) S 3 7 7 0 -1 4194304 1 2 3 4 50 25": -1, // too short
		"12 (sh":                -1,
		"":                      -1,
		"12 (sh) S x" + rest:    -1,
		"12 (sh) S 7 x" + "y\n": -1,
	} {
		s, err := Parse([]byte(in))
		if parent < 0 {
			if err == nil {
				t.Errorf("%q: accepted as %+v", in, s)
			}
			continue
		}
		if want := (Stat{Parent: parent, Start: 4711, Threads: 1, CPU: 750 * time.Millisecond}); err != nil || s != want {
			t.Errorf("%q: %+v, %v; want %+v", in, s, err, want)
		}
	}
}

func TestRead(t *testing.T) {
	s, err := Read(os.Getpid())
	if err != nil || s.Parent != os.Getppid() || s.Start == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if self, err := Self(); err != nil || self.Start != s.Start {
		t.Errorf("self: %+v, %v, want the start time of %+v", self, err, s)
	}
	if _, err := Read(1 << 30); !errors.Is(err, fs.ErrNotExist) { // above the kernel's largest pid
		t.Errorf("a process that does not exist: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("12 (sh) S 7" + rest))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = Parse(b) })
}
