package state

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func next(t *testing.T, w *Watcher) Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	e, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestWatch(t *testing.T) {
	d := open(t)
	before := create(t, d, "before")
	w, records, err := d.Watch()
	if err != nil || len(records) != 1 || records[0].Name != "before" {
		t.Fatal(records, err)
	}
	defer w.Close()
	want := func(words ...string) {
		t.Helper()
		for _, word := range words {
			e := next(t, w)
			got := fmt.Sprint(e.Action, " ", e.Record.Name)
			switch e.Action {
			case ActionDie:
				got += fmt.Sprint(" ", e.ExitCode)
			case ActionRename:
				got += " " + e.OldName
			case ActionPublish, ActionUnpublish:
				got += " " + e.Port
			}
			if got != word || time.Since(e.Time) > time.Minute {
				t.Errorf("%s at %v, want %s", got, e.Time, word)
			}
		}
	}
	update := func(e *Entry, f func(*Record)) {
		t.Helper()
		if err := e.Update(f); err != nil {
			t.Fatal(err)
		}
	}
	e := create(t, d, "web")
	want("create web")
	update(e, func(r *Record) { r.Status, r.Keep, r.Started, r.Ports = Running, true, time.Now(), []string{"a"} })
	want("start web")
	update(e, func(r *Record) { r.Ports = []string{"a", "b"} })
	want("publish web b")
	update(e, func(r *Record) { r.Ports = []string{"b"} })
	want("unpublish web a")
	if err := e.Rename("www"); err != nil {
		t.Fatal(err)
	}
	want("rename www web")
	update(e, func(r *Record) { code := 4; r.Status, r.ExitCode = Lingering, &code })
	want("die www 4")
	if err := e.End(4, nil); err != nil {
		t.Fatal(err)
	}
	r, err := d.LookupAny("www")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(r); err != nil {
		t.Fatal(err)
	}
	want("destroy www")
	// One that is not kept, and one whose command never ran.
	update(before, func(r *Record) { r.Status = Running })
	if err := before.End(5, nil); err != nil {
		t.Fatal(err)
	}
	want("start before", "die before 5", "destroy before")
	failed := create(t, d, "failed")
	want("create failed")
	failed.Close()
	want("destroy failed")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if e, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(e, err)
	}
}

func TestWait(t *testing.T) {
	d := open(t)
	ended := endKept(t, d, "ended", 3)
	if code, err := d.Wait(t.Context(), ended); code != 3 || err != nil {
		t.Error(code, err)
	}
	for _, keep := range []bool{true, false} {
		e := create(t, d, "web")
		if err := e.Update(func(r *Record) { r.Status, r.Keep = Running, keep }); err != nil {
			t.Fatal(err)
		}
		r, _ := e.Record()
		time.AfterFunc(50*time.Millisecond, func() { e.End(9, nil) })
		if code, err := d.Wait(t.Context(), r); code != 9 || err != nil {
			t.Error(keep, code, err)
		}
		if got, err := d.LookupAny(r.ID); keep != (err == nil) || keep && got.Status != Exited {
			t.Errorf("after Wait: %+v %v", got, err)
		}
	}
	r := ended
	r.ID = strings.Repeat("cd", 32)
	if _, err := d.Wait(t.Context(), r); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// TestWaitForAKilledSupervisor: the kernel reports the end of a killed supervisor to no one.
func TestWaitForAKilledSupervisor(t *testing.T) {
	for _, keep := range []string{"", "1"} {
		d := open(t)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "STATE_TEST_SUPERVISOR="+d.Path(), "STATE_TEST_KEEP="+keep, "STATE_TEST_RUNNING=1")
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
		r, err := d.Lookup("victim")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(50*time.Millisecond, func() { cmd.Process.Kill(); cmd.Wait() })
		if code, err := d.Wait(t.Context(), r); code != 137 || err != nil {
			t.Error(code, err)
		}
	}
}
