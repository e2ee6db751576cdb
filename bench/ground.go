package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"rootlessnet/internal/nettest/topo"
)

const (
	port       = 5301 // of our own server
	iperfPort  = 5201 // iperf3's own default
	publicPort = 8301 // of the server behind a published port
	// startPatience is how long a helper may take to get a server behind it up.
	startPatience = 20 * time.Second
	// runPatience is added to a measurement's own time before it is given up.
	runPatience = 30 * time.Second
)

// ground is where measurements are taken: the namespaces and the servers in "there".
type ground struct {
	*topo.Topo
	self    string // path of this program
	runtime string // XDG_RUNTIME_DIR of what is started
	time    time.Duration
	server  *process
	iperf   string // path of iperf3, or ""
	unshare string // path of unshare, or ""
}

func newGround(lanMTU int, d time.Duration) (*ground, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	t, err := topo.New(topo.Options{MTU: lanMTU})
	if err != nil {
		return nil, err
	}
	g := &ground{Topo: t, self: self, time: d}
	if g.runtime, err = os.MkdirTemp("/tmp", "b"); err != nil {
		g.close()
		return nil, err
	}
	g.iperf, _ = exec.LookPath("iperf3")
	g.unshare, _ = exec.LookPath("unshare")
	// Kept, because the server ends when the pipe to its stdin does.
	if g.server, err = g.start(g.There, []string{self, "serve", fmt.Sprintf("[::]:%d", port)}); err != nil {
		g.close()
		return nil, fmt.Errorf("server: %w", err)
	}
	if g.iperf != "" {
		srv := g.There.Command(g.iperf, "-s", "-p", fmt.Sprint(iperfPort))
		if err := srv.Start(); err != nil {
			g.close()
			return nil, fmt.Errorf("iperf3: %w", err)
		}
	}
	return g, nil
}

func (g *ground) close() {
	if g.server != nil {
		g.server.stop()
	}
	g.Topo.Close()
	os.RemoveAll(g.runtime)
}

// process is a running command that said "ready".
type process struct {
	*topo.Cmd
	stdin io.Closer
	line  string // what it said, without "ready"
}

// start runs argv and waits until it prints a line that begins with "ready".
func (g *ground) start(ns *topo.NS, argv []string) (*process, error) {
	cmd := g.command(ns, argv)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{Cmd: cmd, stdin: stdin}
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- line
	}()
	select {
	case line := <-ready:
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "ready")
		if ok {
			p.line = strings.TrimSpace(rest)
			return p, nil
		}
	case <-time.After(startPatience):
	}
	p.stop()
	return nil, fmt.Errorf("%s did not get ready: %s", strings.Join(argv, " "), tail(stderr.String()))
}

// stop ends the process as its user would: EOF on stdin, then SIGTERM, then SIGKILL.
func (p *process) stop() {
	p.stdin.Close()
	done := make(chan struct{})
	go func() {
		_ = p.Wait()
		close(done)
	}()
	for _, s := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGKILL} {
		_ = p.Process.Signal(s)
		select {
		case <-done:
			return
		case <-time.After(2 * time.Second):
		}
	}
	<-done
}

func (g *ground) command(ns *topo.NS, argv []string) *topo.Cmd {
	cmd := ns.Command(argv...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+g.runtime)
	return cmd
}

// output runs argv to its end and returns its stdout.
func (g *ground) output(ns *topo.NS, argv []string, limit time.Duration) ([]byte, error) {
	cmd := g.command(ns, argv)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // a helper's left-over must not hold the pipes for ever
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, tail(stderr.String()+stdout.String()))
	}
	return stdout.Bytes(), nil
}

// sample runs argv and reads the Sample that it prints.
func (g *ground) sample(ns *topo.NS, argv []string) (s Sample, err error) {
	out, err := g.output(ns, argv, g.time+runPatience)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(bytes.TrimSpace(out), &s); err != nil {
		return s, fmt.Errorf("%s printed %q: %w", strings.Join(argv, " "), tail(string(out)), err)
	}
	return s, nil
}

// tail is the end of an output, short enough for an error.
func tail(s string) string {
	const most = 300
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}
