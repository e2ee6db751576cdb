package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/procstat"
)

// proc is a process.
type proc struct {
	pid, parent int
	start       uint64        // see procstat.Stat
	used        time.Duration // processor time of all its threads
}

// processes returns all processes, by pid.
func processes() (map[int]proc, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[int]proc{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := readProc(pid); err == nil { // otherwise it has ended
			all[pid] = p
		}
	}
	return all, nil
}

func readProc(pid int) (proc, error) {
	stat, err := procstat.Read(pid)
	return proc{pid: pid, parent: stat.Parent, start: stat.Start, used: stat.CPU}, err
}

// processTree returns the process root and all its descendants.
func processTree(root int) ([]proc, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for pid, p := range all {
		children[p.parent] = append(children[p.parent], pid)
	}
	var found []proc
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		if p, ok := all[queue[0]]; ok {
			found = append(found, p)
			queue = append(queue, children[p.pid]...)
		}
	}
	return found, nil
}

// killRemaining kills those of the processes that still run.
func killRemaining(family []proc) {
	for _, p := range family {
		if now, err := readProc(p.pid); err == nil && now.start == p.start {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
}

// ours reports whether a process runs this program: a client, a server, or a subcommand that starts a helper.
func (tb *testbed) ours(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	first, _, _ := bytes.Cut(line, []byte{0})
	return err == nil && string(first) == tb.self
}

// helperProcesses returns the processes of the tree of root that do not run this program.
func (tb *testbed) helperProcesses(root int) ([]proc, error) {
	family, err := processTree(root)
	if err != nil {
		return nil, err
	}
	var found []proc
	for _, p := range family {
		if !tb.ours(p.pid) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the helper has no processes")
	}
	return found, nil
}

// times holds processor time in seconds, of the helper's processes and of those of this program.
type times struct{ helper, own float64 }

// times returns the processor time of the process trees of the roots.
func (tb *testbed) times(roots ...*process) (t times, err error) {
	for _, root := range roots {
		family, err := processTree(root.Process.Pid)
		if err != nil {
			return t, err
		}
		for _, p := range family {
			if tb.ours(p.pid) {
				t.own += p.used.Seconds()
			} else {
				t.helper += p.used.Seconds()
			}
		}
	}
	return t, nil
}

// rss returns the resident memory of a process in KiB.
func rss(pid int) (int, error) { return kib(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:") }

// pss returns the proportional set size in KiB: each shared page counts in parts for the processes that share it.
func pss(pid int) (int, error) { return kib(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") }

// kib reads the number after name in a file of /proc with lines of the form "name number kB".
func kib(path, name string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// lockedBuffer stores the output of a process. It may be written and read concurrently.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
