package state

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// endKept makes a sandbox that has run and ended, and is kept.
func endKept(t *testing.T, d *Dir, name string, code int) Record {
	t.Helper()
	e := create(t, d, name)
	if err := e.Update(func(r *Record) { r.Status, r.Keep, r.Ports = Running, true, []string{"0.0.0.0:80->80/tcp"} }); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.SocketPath(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.End(code, nil); err != nil {
		t.Fatal(err)
	}
	r, err := d.LookupAny(e.ID())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEndedIsKept(t *testing.T) {
	d := open(t)
	r := endKept(t, d, "web", 3)
	if r.Status != Exited || *r.ExitCode != 3 || r.Finished.IsZero() || r.Ports != nil || r.Name != "web" {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(d.SocketPath(r)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket was left:", err)
	}
	if _, err := d.Lookup("web"); !errors.Is(err, ErrNotFound) {
		t.Error("Lookup finds what has ended:", err)
	}
	if live, err := d.List(); err != nil || len(live) != 0 {
		t.Errorf("List: %v %v", live, err)
	}
	if !d.Ended(r) {
		t.Error("Ended is false")
	}
	if err := d.Remove(r); err != nil {
		t.Error(err)
	}
	if err := d.Remove(r); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(d.Path()); len(entries) != 0 {
		t.Error("left:", entries)
	}
}

// TestNotKept: without Keep, and if the command never ran, nothing is left.
func TestNotKept(t *testing.T) {
	d := open(t)
	for _, change := range []func(*Record){
		func(r *Record) { r.Status = Running },
		func(r *Record) { r.Keep = true },
	} {
		e := create(t, d, "web")
		if err := e.Update(change); err != nil {
			t.Fatal(err)
		}
		if err := e.End(0, nil); err != nil {
			t.Fatal(err)
		}
		if entries, _ := os.ReadDir(d.Path()); len(entries) != 0 {
			t.Error("left:", entries)
		}
	}
}

// TestNameOfAnEndedSandbox: a new sandbox takes the name, and nothing is lost.
func TestNameOfAnEndedSandbox(t *testing.T) {
	d := open(t)
	old := endKept(t, d, "web", 1)
	e := create(t, d, "web")
	if r, err := d.LookupAny("web"); err != nil || r.ID != e.ID() {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := d.LookupAny(old.ID); err != nil || r.Name != old.ShortID()+"_web" || *r.ExitCode != 1 {
		t.Errorf("%+v %v", r, err)
	}
	// Renaming claims a name the same way.
	other := endKept(t, d, "db", 2)
	if err := e.Rename("db"); err != nil {
		t.Error(err)
	}
	if r, err := d.LookupAny("db"); err != nil || r.ID != e.ID() || e.Name() != "db" {
		t.Errorf("%+v %v", r, err)
	}
	if err := d.Rename(other, "db"); !errors.Is(err, ErrNameInUse) {
		t.Error(err)
	}
	if err := d.Rename(other, "old"); err != nil {
		t.Error(err)
	}
	if r, err := d.LookupAny("old"); err != nil || r.ID != other.ID {
		t.Errorf("%+v %v", r, err)
	}
	live := create(t, d, "api")
	if err := live.Rename("db"); !errors.Is(err, ErrNameInUse) || live.Name() != "api" {
		t.Error(err, live.Name())
	}
	r, err := live.Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Rename(r, "x1"); !errors.Is(err, ErrRunning) {
		t.Error(err)
	}
	if err := d.Remove(r); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "sandbox is running: stop the sandbox") {
		t.Error(err)
	}
}

// TestStartReadsNoEndedRecord: a start neither reads nor judges what is kept; the next look at the directory does.
func TestStartReadsNoEndedRecord(t *testing.T) {
	d := open(t)
	old := endKept(t, d, "web", 1)
	damaged := endKept(t, d, "db", 1)
	if err := os.WriteFile(filepath.Join(d.PathOf(damaged), recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := create(t, d, "web")
	if _, err := os.Stat(d.PathOf(damaged)); err != nil {
		t.Error("the start has read the record of an ended sandbox:", err)
	}
	// Two that have ended have the name now, and the one that was started last keeps it.
	if err := errors.Join(first.Update(func(r *Record) { r.Status, r.Keep = Running, true }), first.End(2, nil)); err != nil {
		t.Fatal(err)
	}
	for ref, code := range map[string]int{"web": 2, old.ShortID() + "_web": 1} {
		if r, err := d.LookupAny(ref); err != nil || *r.ExitCode != code {
			t.Errorf("%s: %+v %v", ref, r, err)
		}
	}
	if _, err := os.Stat(d.PathOf(damaged)); !errors.Is(err, os.ErrNotExist) {
		t.Error("a directory without a record was left:", err)
	}
}

// TestBounds: the number, the age and the size of what is kept are bounded, and the oldest go first.
func TestBounds(t *testing.T) {
	age := func(t *testing.T, d *Dir, r Record, by time.Duration) {
		t.Helper()
		r.Finished = r.Finished.Add(-by)
		if err := writeRecord(d.PathOf(r), &r); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(t *testing.T, d *Dir) map[string]bool {
		t.Helper()
		records, err := d.ListAll()
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, r := range records {
			names[r.Name] = true
		}
		return names
	}
	t.Run("number", func(t *testing.T) {
		d := open(t)
		for i := range maxEnded + 5 {
			age(t, d, endKept(t, d, fmt.Sprint("box", i), 0), time.Duration(maxEnded-i)*time.Second)
		}
		if names := kept(t, d); len(names) != maxEnded || names["box4"] || !names["box5"] {
			t.Error(names)
		}
	})
	t.Run("age", func(t *testing.T) {
		d := open(t)
		age(t, d, endKept(t, d, "old", 0), maxEndedAge+time.Minute)
		age(t, d, endKept(t, d, "young", 0), maxEndedAge-time.Minute)
		if names := kept(t, d); names["old"] || !names["young"] {
			t.Error(names)
		}
	})
	t.Run("size", func(t *testing.T) {
		d := open(t)
		var large []Record
		for i, name := range []string{"newest", "large", "small"} {
			r := endKept(t, d, name, 0)
			age(t, d, r, time.Duration(i)*time.Second)
			large = append(large, r)
		}
		for _, r := range large[:2] {
			if err := os.Truncate(filepath.Join(d.PathOf(r), exitPrefix+"0"), maxEndedBytes); err != nil { // sparse
				t.Fatal(err)
			}
		}
		if names := kept(t, d); !names["newest"] || names["large"] || names["small"] {
			t.Error(names)
		}
	})
}

// TestKilledSupervisorIsKept: the sandbox of a killed supervisor that was to be kept has ended with 137.
func TestKilledSupervisorIsKept(t *testing.T) {
	d := open(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "STATE_TEST_SUPERVISOR="+d.Path(), "STATE_TEST_KEEP=1")
	stdin, _ := cmd.StdinPipe()
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready <nil>\n" {
		t.Fatal(line, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for range 2 { // what the first call has found is stored
		r, err := d.LookupAny("victim")
		if err != nil || r.Status != Exited || *r.ExitCode != 137 || r.Error == "" || r.Finished.IsZero() {
			t.Fatalf("%+v %v", r, err)
		}
	}
}

// TestEndOnAFullDisk: the exit code is known although the record cannot be written.
func TestEndOnAFullDisk(t *testing.T) {
	d := open(t)
	e := create(t, d, "web")
	if err := e.Update(func(r *Record) { r.Status, r.Keep = Running, true }); err != nil {
		t.Fatal(err)
	}
	inTheWay := filepath.Join(e.Path(), recordFile+".new")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.End(7, nil); err == nil {
		t.Error("no error")
	}
	check := func() {
		t.Helper()
		if r, err := d.LookupAny("web"); err != nil || r.Status != Exited || *r.ExitCode != 7 || r.Error != "" {
			t.Errorf("%+v %v", r, err)
		}
	}
	check()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if code, err := d.Wait(ctx, Record{ID: e.ID(), Name: "web"}); code != 7 || err != nil {
		t.Error(code, err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	check()
	if r, err := readRecord(e.Path()); err != nil || r.Status != Exited {
		t.Errorf("%+v %v", r, err)
	}
}

// TestManyAtOnce starts, renames, ends and removes sandboxes in many goroutines, while others read. Nothing fails, and what is left
// is what was not removed.
func TestManyAtOnce(t *testing.T) {
	d := open(t)
	var wg sync.WaitGroup
	const workers, rounds = 8, 20
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				e, err := d.Create(fmt.Sprintf("w%d-%d", w, i))
				if err != nil {
					t.Error(err)
					return
				}
				err = errors.Join(e.Update(func(r *Record) { r.Status, r.Keep = Running, true }), e.Rename(fmt.Sprintf("r%d-%d", w, i)), e.End(i, nil))
				if err != nil {
					t.Error(err)
				}
				r, err := d.LookupAny(e.ID())
				if errors.Is(err, ErrNotFound) && workers*rounds > maxEnded {
					continue // the bound has removed it
				}
				if err != nil || *r.ExitCode != i {
					t.Errorf("%+v %v", r, err)
				}
				if i%2 == 0 {
					if err := d.Remove(r); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if records, err := d.ListAll(); err != nil || len(records) != min(maxEnded, workers*rounds/2) {
		t.Errorf("%d left, %v", len(records), err)
	}
}
