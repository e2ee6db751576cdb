package e2e

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/topo"
)

// namespace is a user and a network namespace that unshare(1) made, with an agent inside that is root there.
type namespace struct {
	*sandbox
	pid int
}

// holder makes a namespace: below "here", as unshare(1) does it.
func (l *lab) holder() *namespace {
	l.Helper()
	s := l.agent("holder", l.Here.Command(append([]string{"unshare", "--user", "--map-root-user", "--net", "--"}, agentProgram()...)...))
	return &namespace{s, s.cmd.Process.Pid}
}

// file is the path of one of the holder's namespaces.
func (n *namespace) file(ns string) string { return fmt.Sprintf("/proc/%d/ns/%s", n.pid, ns) }

// enter runs a program as root of the namespace, and fails the test when it fails.
func (n *namespace) enter(argv ...string) string {
	n.Helper()
	r := n.finish(n.Here.Command(append([]string{"nsenter", "--target", strconv.Itoa(n.pid), "--user", "--net", "--preserve-credentials", "--"}, argv...)...))
	if r.code != 0 {
		n.Fatalf("%v: exit %d: %s%s", argv, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// links are the names of its interfaces besides lo.
func (n *namespace) links() (names []string) {
	n.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", n.pid))
	if err != nil {
		n.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n")[2:] {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name != "lo" {
			names = append(names, name)
		}
	}
	return names
}

// noLinks expects that nothing but lo is left inside after a while.
func (n *namespace) noLinks(within time.Duration) {
	n.Helper()
	eventually(n.T, within, func() string {
		if names := n.links(); len(names) > 0 {
			return fmt.Sprintf("left inside: %v", names)
		}
		return ""
	})
}

// attached is a rootless-net attach, or another helper, that has written its ready byte.
type attached struct {
	*lab
	cmd    *topo.Cmd
	output *buffer  // stdout and stderr
	exit   *os.File // the other end of --exit-fd
	ended  chan error
}

// attach starts a helper and waits for its ready byte.
func (l *lab) attach(args ...string) *attached {
	l.Helper()
	return l.attachBy(nil, args...)
}

// attachBy is attach with words before the command line: those of a program that executes it.
func (l *lab) attachBy(by []string, args ...string) *attached {
	l.Helper()
	args = append(append([]string{"attach", "--ready-fd", "3", "--exit-fd", "4"}, l.flags...), args...)
	cmd := l.command("rootless-net", args...)
	if by != nil {
		env := cmd.Env
		cmd = l.Here.Command(append(append([]string{}, by...), cmd.Args...)...)
		cmd.Env = env
	}
	return l.startHelper(cmd)
}

// startHelper starts a helper with a ready descriptor, 3, and an exit descriptor, 4, and waits for its ready byte.
func (l *lab) startHelper(cmd *topo.Cmd) *attached {
	l.Helper()
	a := &attached{lab: l, cmd: cmd, output: &buffer{}, ended: make(chan error, 1)}
	ready, readyW, err := os.Pipe()
	if err != nil {
		l.Fatal(err)
	}
	defer ready.Close()
	exitR, exit, err := os.Pipe()
	if err != nil {
		l.Fatal(err)
	}
	a.exit = exit
	cmd.ExtraFiles = []*os.File{readyW, exitR}
	cmd.Stdout, cmd.Stderr = a.output, a.output // rootlessport reports errors on stdout
	l.launch(cmd)
	readyW.Close()
	exitR.Close()
	go func() { a.ended <- cmd.Wait() }()
	l.Cleanup(func() {
		exit.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		eventually(l.T, 5*time.Second, func() string {
			if alive(cmd.Process.Pid) {
				return fmt.Sprintf("%v does not end", cmd.Args)
			}
			return ""
		})
	})
	_ = ready.SetReadDeadline(time.Now().Add(opPatience))
	if word, err := io.ReadAll(ready); err != nil || string(word) != "1" {
		l.Fatalf("%v: the ready descriptor: %q, %v; output:\n%s", cmd.Args, word, err, a.output)
	}
	return a
}

// ends expects that the helper ends by itself, with exit status 0, and leaves nothing.
func (a *attached) ends(within time.Duration) {
	a.Helper()
	select {
	case err := <-a.ended:
		if err != nil {
			a.Errorf("attach ended: %v; stderr:\n%s", err, a.output)
		}
	case <-time.After(within):
		a.Fatalf("attach did not end within %v; stderr:\n%s", within, a.output)
	}
	if left := a.files(); len(left) > 0 {
		a.Errorf("left behind: %v", left)
	}
}

// onEveryLinkAttached runs test once for each link kind, with a namespace to attach to.
func onEveryLinkAttached(t *testing.T, test func(t *testing.T, n *namespace)) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) { test(t, l.holder()) })
}

// children are the child processes of pid.
func children(t *testing.T, pid int) (list []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// "pid (comm) state ppid …" (proc(5)); comm may hold anything.
		if words := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])); len(words) > 1 && words[1] == strconv.Itoa(pid) {
			list = append(list, child)
		}
	}
	return list
}
