package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
		fmt.Fprint(l, line)
		if i%5 == 4 { // less than the limit
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
	if got := text(chunks); err != nil || len(got) <= 100 || !strings.HasSuffix(wrote.String(), got) {
		t.Errorf("%q %v", got, err)
	}
	for _, c := range chunks {
		if time.Since(c.First) > time.Minute || c.First.After(c.Last) {
			t.Errorf("%q at %v to %v", c.Text, c.First, c.Last)
		}
	}
	// The index of a file that is gone is gone as well.
	if files, _ := filepath.Glob(filepath.Join(e.Path(), indexPrefix+"*")); len(files) != 2 {
		t.Error(files)
	}
}

// TestLogIndexIsBounded: a full index is halved, and its entries still hold the times of all of the text.
func TestLogIndexIsBounded(t *testing.T) {
	d := open(t)
	e := create(t, d, "")
	l, err := e.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begin := time.Unix(1000, 0)
	const writes = 3 * maxIndex
	for i := range writes {
		l.index.add(int64(i), begin.Add(time.Duration(i)*time.Second))
		fmt.Fprint(l.f, "x")
	}
	entries := readIndex(e.Path(), l.f)
	if len(entries) > maxIndex || len(entries) < maxIndex/2 {
		t.Errorf("%d entries", len(entries))
	}
	for i, x := range entries {
		next := int64(writes)
		if i+1 < len(entries) {
			next = entries[i+1].offset
		}
		first, last := begin.Add(time.Duration(x.offset)*time.Second).UnixNano(), begin.Add(time.Duration(next-1)*time.Second).UnixNano()
		if x.first != first || x.last != last {
			t.Fatalf("entry %d: %+v, want %d to %d", i, x, first, last)
		}
	}
	if n := len(entries); entries[n-1].first != entries[n-1].last || entries[n-1].offset != writes-1 {
		t.Errorf("the newest entry is %+v", entries[n-1])
	}
	if entries[0].offset != 0 {
		t.Errorf("the oldest entry is %+v", entries[0])
	}
	if st, err := os.Stat(l.index.path); err != nil || st.Size() > maxIndex*entrySize {
		t.Errorf("%v %v", st, err)
	}
}

// TestDamagedIndex: an index that is cut off or missing loses times, and no text.
func TestDamagedIndex(t *testing.T) {
	d := open(t)
	e := create(t, d, "")
	l, err := e.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fmt.Fprint(l, "one\n")
	fmt.Fprint(l, "two\n")
	r, _ := e.Record()
	for _, damage := range []func() error{
		func() error { return os.Truncate(l.index.path, entrySize+5) },
		func() error { return os.Truncate(l.index.path, 3) },
		func() error { return os.Remove(l.index.path) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		in, err := d.OpenLog(r)
		if err != nil {
			t.Fatal(err)
		}
		if chunks, err := in.Read(); err != nil || text(chunks) != "one\ntwo\n" {
			t.Errorf("%q %v", text(chunks), err)
		}
		in.Close()
	}
}
