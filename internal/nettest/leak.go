package nettest

import (
	"fmt"
	"os"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long goroutines and descriptors may take to end after the test: closing is often finished by
// another goroutine.
const leakPatience = 3 * time.Second

// CheckLeaks fails the test when, after it and all its later cleanups, there are goroutines or open file descriptors
// that were not there when CheckLeaks was called. Call it first. Not for parallel tests: it sees the whole process.
func CheckLeaks(t testing.TB) {
	t.Helper()
	checkLeaks(t, leakPatience)
}

func checkLeaks(t testing.TB, patience time.Duration) {
	t.Helper()
	goroutines, fds := liveGoroutines(), openFDs()
	t.Cleanup(func() {
		t.Helper()
		if t.Failed() {
			return // a test that ended early leaves things behind, and its own failure matters more
		}
		end := time.Now().Add(patience)
		var left []string
		for {
			left = append(added(goroutines, liveGoroutines()), added(fds, openFDs())...)
			if len(left) == 0 {
				return
			}
			if time.Now().After(end) {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("%d left behind:\n%s", len(left), strings.Join(left, "\n"))
	})
}

func added(before, after map[string]string) (what []string) {
	for k, v := range after {
		if old, ok := before[k]; !ok || old != v && strings.HasPrefix(k, "fd ") {
			what = append(what, k+" "+v)
		}
	}
	sort.Strings(what)
	return what
}

// liveGoroutines maps "goroutine N" to its stack. Goroutines that the runtime and package testing keep for ever are
// left out.
func liveGoroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	live := make(map[string]string)
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i == 0 || // the caller
			strings.Contains(g, "created by testing.") || strings.Contains(g, "testing.(*M).") ||
			strings.Contains(g, "created by os/signal.") || strings.Contains(g, "created by runtime") {
			continue
		}
		name, rest, _ := strings.Cut(g, " [")
		live[name] = "[" + rest
	}
	return live
}

// openFDs maps "fd N" to what it is. The runtime's own poller is left out.
func openFDs() map[string]string {
	fds := make(map[string]string)
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fds
	}
	for _, e := range dir {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]" {
			continue // the directory itself, closed by now; the poller
		}
		fds["fd "+e.Name()] = fmt.Sprintf("-> %s", to)
	}
	return fds
}
