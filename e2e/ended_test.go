package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// detached starts a shell script in the background and returns the id of the sandbox, which is killed with the test.
func (l *lab) detached(script string, flags ...string) (id string) {
	l.Helper()
	r := l.once(append([]string{"-d", "--network", "none"}, flags...), "sh", "-c", script)
	if id = strings.TrimSpace(r.stdout); r.code != 0 || len(id) != 64 {
		l.Fatalf("exit %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	l.Cleanup(func() {
		for _, pid := range l.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return id
}

// refused runs rootless-net, which must fail with the code and a text on stderr.
func (l *lab) refused(code int, text string, args ...string) {
	l.Helper()
	if r := l.finish(l.command("rootless-net", args...)); r.code != code || !strings.Contains(r.stderr, text) {
		l.Errorf("rootless-net %v: exit %d, %q; want %d, %q", args, r.code, r.stderr, code, text)
	}
}

// TestEnded: a detached command that dies leaves its exit code and all that it has printed, also at the very end, until rm; its name is
// free at once.
func TestEnded(t *testing.T) {
	l := newLab(t)
	const lines = 5000 // more than 64 KiB, which the pipe holds
	id := l.detached(fmt.Sprintf("seq %d; seq %d >&2; echo the end; exit 3", lines, lines), "--name", "web", "--label", "tier=front")
	if got := l.manage("wait", "web"); got != "3\n" {
		t.Errorf("wait: %q", got)
	}
	if got := l.manage("ps", "-q"); got != "" {
		t.Errorf("ps lists %q", got)
	}
	if got := l.manage("ps", "-a", "--format", "{{.ID}} {{.Names}} {{.State}} {{.Status}}"); !strings.HasPrefix(got, id[:12]+" web exited Exited (3) ") {
		t.Errorf("ps -a: %q", got)
	}
	for _, filter := range []string{"exited=3", "status=exited", "label=tier=front", "name=^web$", "id=" + id[:4], "network=none"} {
		if got := l.manage("ps", "-aq", "--no-trunc", "--filter", filter); got != id+"\n" {
			t.Errorf("filter %s: %q", filter, got)
		}
	}
	for _, filter := range []string{"exited=0", "status=running", "label=tier=back", "name=^we$"} {
		if got := l.manage("ps", "-aq", "--filter", filter); got != "" {
			t.Errorf("filter %s: %q", filter, got)
		}
	}
	// Each stream is where it was.
	logs := l.finish(l.command("rootless-net", "logs", "web"))
	for _, c := range []struct {
		name, text, last string
		lines            int
	}{{"output", logs.stdout, "the end", lines + 1}, {"error", logs.stderr, strconv.Itoa(lines), lines}} {
		log := strings.Split(strings.TrimSpace(c.text), "\n")
		if len(log) != c.lines || log[0] != "1" || log[len(log)-1] != c.last {
			t.Errorf("the log of standard %s has %d lines and ends with %q", c.name, len(log), log[max(0, len(log)-2):])
		}
	}
	if got := l.manage("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Running}} {{.Config.Labels.tier}}", "web"); got != "exited 3 false front\n" {
		t.Errorf("inspect: %q", got)
	}
	for _, args := range []string{"port web", "exec web true", "top web", "kill web"} {
		l.refused(1, "is not running", strings.Fields(args)...)
	}
	if got := l.manage("stop", "web"); got != "web\n" {
		t.Errorf("stop of what has ended: %q", got)
	}

	// The name is free; the old one is still there.
	again := l.detached("exec sleep 1000", "--name", "web")
	if got := l.manage("inspect", "-f", "{{.Id}}", "web"); got != again+"\n" {
		t.Errorf("web is %q", got)
	}
	if got := l.manage("wait", id[:12]+"_web"); got != "3\n" {
		t.Errorf("the first: %q", got)
	}
	l.refused(1, "sandbox is running: stop the sandbox before removing or force remove", "rm", "web")
	l.manage("rm", "-f", "web")
	l.manage("rm", id[:6])
	l.refused(1, "No such sandbox", "logs", id)
	l.nothingLeft(time.Second)
	if files := l.files(); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
}

// TestNothingIsKept: of a command in the foreground, with --rm, and of one that cannot be started.
func TestNothingIsKept(t *testing.T) {
	l := newLab(t)
	if r := l.once([]string{"--network", "none"}, "sh", "-c", "exit 4"); r.code != 4 {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	l.detached("sleep .5; exit 5", "--rm", "--name", "brief")
	if got := l.manage("wait", "brief"); got != "5\n" {
		t.Errorf("wait: %q", got)
	}
	if r := l.once([]string{"-d", "--network", "none"}, "no-such-command"); r.code != 127 {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	l.nothingLeft(time.Second)
	if got := l.manage("ps", "-aq"); got != "" || len(l.files()) > 0 {
		t.Errorf("ps -a: %q; left: %v", got, l.files())
	}
	if r := l.once([]string{"--network", "none", "--rm=false", "--name", "kept"}, "sh", "-c", "exit 6"); r.code != 6 {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if got := l.manage("wait", "kept"); got != "6\n" {
		t.Errorf("wait: %q", got)
	}
	l.refused(1, "kept has no log", "logs", "kept")
	if got := l.manage("prune", "-f"); !strings.HasPrefix(got, "Deleted Sandboxes:\n") || len(l.files()) > 0 {
		t.Errorf("prune: %q; left: %v", got, l.files())
	}
}

// TestEndedByASignal: the exit codes of stop, kill and a killed supervisor. The log stays in each case.
func TestEndedByASignal(t *testing.T) {
	l := newLab(t)
	supervisor := func(name string) int {
		pid, err := strconv.Atoi(strings.TrimSpace(l.manage("inspect", "-f", "{{.Sandbox.supervisor.pid}}", name)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	for _, c := range []struct {
		name, script, code string
		end                func()
	}{
		{"stopped", "exec sleep 1000", "143", func() { l.manage("stop", "stopped") }},
		{"deaf", "trap '' TERM; while :; do sleep .1; done", "137", func() { l.manage("stop", "-t", "0", "deaf") }},
		{"killed", "exec sleep 1000", "137", func() { l.manage("kill", "killed") }},
		{"signalled", "exec sleep 1000", "138", func() { l.manage("kill", "-s", "USR1", "signalled") }},
		{"quit", "trap 'exit 9' QUIT; while :; do sleep .1; done", "9", func() { l.manage("stop", "quit") }},
		{"lost", "exec sleep 1000", "137", func() { _ = syscall.Kill(supervisor("lost"), syscall.SIGKILL) }},
	} {
		var flags []string
		if c.name == "quit" {
			flags = []string{"--stop-signal", "QUIT"}
		}
		l.detached("echo up; "+c.script, append(flags, "--name", c.name)...)
		eventually(t, 5*time.Second, func() string {
			if got := l.manage("logs", c.name); got != "up\n" {
				return fmt.Sprintf("the log is %q", got)
			}
			return ""
		})
		c.end()
		if got := l.manage("wait", c.name); got != c.code+"\n" {
			t.Errorf("%s: exit code %q, want %s", c.name, got, c.code)
		}
		if got := l.manage("logs", c.name); got != "up\n" {
			t.Errorf("%s: the log is %q", c.name, got)
		}
	}
	l.nothingLeft(time.Second)
	l.manage("prune", "-f")
	if files := l.files(); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
}

// TestLogsFollow: -f prints what is written until the command ends, each stream where it was, also with a time; --tail cuts by lines,
// and --since and --until by time.
func TestLogsFollow(t *testing.T) {
	l := newLab(t)
	begin := time.Now()
	l.detached("echo first; sleep 1.5; echo second; printf 'no end' >&2; sleep .5; echo third", "--name", "web")
	if r := l.finish(l.command("rootless-net", "logs", "-f", "web")); r.code != 0 || r.stdout != "first\nsecond\nthird\n" || r.stderr != "no end" {
		t.Errorf("exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if got := l.manage("logs", "--tail", "1", "web"); got != "third\n" {
		t.Errorf("--tail: %q", got)
	}
	if r := l.finish(l.command("rootless-net", "logs", "-t", "web")); !strings.HasSuffix(r.stderr, "Z no end") || strings.Count(r.stderr, "Z") != 1 {
		t.Errorf("-t of standard error: %q", r.stderr)
	}
	middle := begin.Add(time.Second).Format(time.RFC3339Nano)
	if got := l.manage("logs", "--since", middle, "web"); !strings.HasSuffix(got, "third\n") || strings.Contains(got, "first") {
		t.Errorf("--since: %q", got)
	}
	if got := l.manage("logs", "--until", middle, "web"); got != "first\n" {
		t.Errorf("--until: %q", got)
	}
	for i, line := range strings.Split(strings.TrimSpace(l.manage("logs", "-t", "web")), "\n") {
		stamp, text, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || at.Before(begin.Add(-time.Second)) || at.After(time.Now()) || text != []string{"first", "second", "third"}[i] {
			t.Errorf("-t: %q, %v", line, err)
		}
	}
}

// TestEvents: each change of a sandbox is printed, of one in the foreground as well.
func TestEvents(t *testing.T) {
	l := newLab(t)
	out := &buffer{}
	events := l.command("rootless-net", "events", "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}{{.Actor.Attributes.port}}")
	events.Stdout = out
	l.launch(events)
	defer func() { _ = events.Process.Kill(); _ = events.Wait() }()
	eventually(t, 5*time.Second, func() string { // until it watches
		if r := l.once([]string{"--network", "none", "--name", "probe"}, "true"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		if !strings.Contains(out.String(), "destroy probe") {
			return out.String()
		}
		return ""
	})
	before := len(out.String())
	if r := l.once([]string{"-d", "--name", "web", "-p", "127.0.0.1:8080:80"}, "sh", "-c", "sleep 1000"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	l.manage("port", "add", "web", "127.0.0.1:8081:81")
	l.manage("port", "rm", "web", "8081")
	l.manage("rename", "web", "www")
	l.manage("kill", "www")
	l.manage("wait", "www")
	l.manage("rm", "www")
	none := "<no value>"
	want := fmt.Sprintf("create web %[1]s%[1]s\nstart web %[1]s%[1]s\npublish web %[1]s127.0.0.1:8081->81/tcp\nunpublish web %[1]s127.0.0.1:8081->81/tcp\n"+
		"rename www %[1]s%[1]s\ndie www 137%[1]s\ndestroy www %[1]s%[1]s\n", none)
	eventually(t, 5*time.Second, func() string {
		if got := out.String()[before:]; got != want {
			return fmt.Sprintf("got\n%swant\n%s", got, want)
		}
		return ""
	})
}

// TestManageRunning: port, top, stats, rename and exec -d of a sandbox that runs.
func TestManageRunning(t *testing.T) {
	l := newLab(t)
	r := l.once([]string{"-d", "--name", "web", "-p", "127.0.0.1:22010:80"}, "sleep", "1000")
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { l.finish(l.command("rootless-net", "rm", "-f", "www", "web")) })
	for _, c := range []struct{ args, want string }{
		{"port web", "80/tcp -> 127.0.0.1:22010\n"},
		{"port ls web", "80/tcp -> 127.0.0.1:22010\n"},
		{"port web 80", "127.0.0.1:22010\n"},
		{"port ls web 80/tcp", "127.0.0.1:22010\n"},
		{"port rm web 22010", "80/tcp -> 127.0.0.1:22010\n"},
		{"port web", ""},
		{"rename web www", ""},
		{"exec -d www sleep 2000", ""},
		{"stats --no-stream --format {{.Name}} www", "www\n"},
		{"ps --format {{.Names}}", "www\n"},
	} {
		if got := l.manage(strings.Fields(c.args)...); got != c.want {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
	}
	l.refused(1, "no public port '80/udp' published for www", "port", "www", "80/udp")
	l.refused(1, "No such sandbox: web", "port", "web")
	l.refused(127, "executable file not found", "exec", "-d", "www", "no-such-command")
	top := strings.Split(strings.TrimSpace(l.manage("top", "www")), "\n")
	if len(top) != 3 || !slices.Equal(strings.Fields(top[0]), []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}) ||
		!strings.HasSuffix(top[1], "sleep 1000") || !strings.HasSuffix(top[2], "sleep 2000") {
		t.Errorf("top:\n%s", strings.Join(top, "\n"))
	}
	// With options the columns are those of ps, and the processes the sandbox's.
	for _, c := range []struct{ options, title, column string }{
		{"-o pid,comm", "COMMAND", "sleep"},
		{"aux", "TIME", ""},
		{"-e -o etime,pid,args", "COMMAND", "sleep 1000"},
		{"-ef", "CMD", "sleep 1000"},
	} {
		out := l.manage(append([]string{"top", "www"}, strings.Fields(c.options)...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 3 || !slices.Contains(strings.Fields(lines[0]), c.title) || !strings.HasSuffix(lines[1], c.column) {
			t.Errorf("top %s:\n%s", c.options, out)
		}
	}
	l.refused(1, "couldn't find PID field in ps output", "top", "www", "-o", "comm")
	l.refused(1, "ps --no-such-option: ", "top", "www", "--no-such-option")
	if got := l.manage("stats", "--no-stream"); !strings.HasPrefix(got, "SANDBOX ID") || !strings.Contains(got, "www") {
		t.Errorf("stats:\n%s", got)
	}
	// The kernel inside sends reports of its multicast groups, which a gateway drops.
	if got := l.manage("stats", "www"); strings.Contains(got, "worth a look") {
		t.Errorf("an idle sandbox:\n%s", got)
	}
	if _, err := os.Stat(filepath.Join(l.runtime, "rootless-run", strings.TrimSpace(r.stdout)[:12], "api.sock")); err != nil {
		t.Error(err)
	}
}
