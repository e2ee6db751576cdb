package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func text(chunks []Chunk) string {
	var b strings.Builder
	for _, c := range chunks {
		b.Write(c.Text)
	}
	return b.String()
}

// TestReadLog reads a log that rotates: every call of Read continues where the last one has ended.
func TestReadLog(t *testing.T) {
	d := open(t)
	e := create(t, d, "web")
	r, err := e.Record()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.OpenLog(r); !errors.Is(err, ErrNoLog) {
		t.Error(err)
	}
	l, err := e.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.limit = 100
	in, err := d.OpenLog(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var wrote, read strings.Builder
	for i := range 60 {
		line := fmt.Sprintf("line %d\n", i)
		wrote.WriteString(line)
		l.Write(Stdout, []byte(line))
		if i%3 == 2 { // less than the limit
			chunks, err := in.Read()
			if err != nil {
				t.Fatal(err)
			}
			read.WriteString(text(chunks))
			if chunks, err := in.Read(); len(chunks) != 0 || err != nil {
				t.Errorf("read twice: %q %v", text(chunks), err)
			}
		}
	}
	if read.String() != wrote.String() {
		t.Errorf("read %q, want %q", read.String(), wrote.String())
	}
	// A reader that begins now finds the end of the text.
	late, err := d.OpenLog(r)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	chunks, err := late.Read()
	if got := text(chunks); err != nil || strings.Count(got, "\n") <= 100/(frameHeader+len("line 59\n")) || !strings.HasSuffix(wrote.String(), got) {
		t.Errorf("%q %v", got, err)
	}
	for _, c := range chunks {
		if time.Since(c.Time) > time.Minute || c.Time.After(time.Now()) || c.Stream != Stdout {
			t.Errorf("%q of %d at %v", c.Text, c.Stream, c.Time)
		}
	}
}

// TestLogStreams: what was written to each stream is told apart, also by several writers at a time.
func TestLogStreams(t *testing.T) {
	d := open(t)
	e := create(t, d, "")
	l, err := e.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	want := map[Stream]string{}
	for _, s := range []Stream{Stdout, Stderr} {
		var text string
		for i := range 1000 {
			text += fmt.Sprintf("%d: %d\n", s, i)
		}
		want[s] = text
		wg.Go(func() {
			for line := range strings.Lines(text) {
				l.Write(s, []byte(line))
			}
		})
	}
	wg.Wait()
	r, err := e.Record()
	if err != nil {
		t.Fatal(err)
	}
	in, err := d.OpenLog(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	chunks, err := in.Read()
	got := map[Stream]string{}
	for _, c := range chunks {
		got[c.Stream] += string(c.Text)
	}
	if err != nil || got[Stdout] != want[Stdout] || got[Stderr] != want[Stderr] {
		t.Errorf("%v: %d and %d bytes, want %d and %d", err, len(got[Stdout]), len(got[Stderr]), len(want[Stdout]), len(want[Stderr]))
	}
}

// TestUnfinishedFrame: a frame that is being written is read when it is complete, and the one at the end of a file that was cut off is
// left out.
func TestUnfinishedFrame(t *testing.T) {
	d := open(t)
	e := create(t, d, "")
	r, err := e.Record()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(e.Path(), LogFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in, err := d.OpenLog(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	at := time.Unix(1, 2)
	all := appendFrame(appendFrame(nil, Stdout, at, []byte("one\n")), Stderr, at, []byte("two\n"))
	first := frameHeader + len("one\n")
	for i := range all {
		if _, err := f.Write(all[i : i+1]); err != nil {
			t.Fatal(err)
		}
		want := map[int]string{first - 1: "one\n", len(all) - 1: "two\n"}[i]
		if chunks, err := in.Read(); err != nil || text(chunks) != want || len(chunks) > 0 && !chunks[0].Time.Equal(at) {
			t.Fatalf("after %d bytes: %+v %v", i+1, chunks, err)
		}
	}
}

// TestPlainLog: the log of a supervisor of version 0.1, which rotates, is read as standard output.
func TestPlainLog(t *testing.T) {
	d := open(t)
	e := create(t, d, "")
	r, err := e.Record()
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(e.Path(), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(plainLogFile, "one\n")
	in, err := d.OpenLog(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	read := func(want string) {
		t.Helper()
		chunks, err := in.Read()
		if err != nil || text(chunks) != want || len(chunks) > 0 && (chunks[0].Stream != Stdout || !chunks[0].Time.IsZero()) {
			t.Errorf("%+v %v", chunks, err)
		}
	}
	read("one\n")
	read("")
	if err := os.Rename(filepath.Join(e.Path(), plainLogFile), filepath.Join(e.Path(), oldPlainLogFile)); err != nil {
		t.Fatal(err)
	}
	write(plainLogFile, "two\n")
	read("two\n")
}
