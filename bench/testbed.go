package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"rootlessnet/internal/nettest/topo"

	"golang.org/x/sys/unix"
)

const (
	// serverPort is the first port of the server outside, serverPorts the number of its ports. Each measurement uses the next one,
	// so that sockets in TIME_WAIT (60 s) have ended before a port is used again.
	serverPort  = 20000
	serverPorts = 200
	// publicPort is the first published port, publicPorts their number. Each measurement uses the next one.
	publicPort  = 10000
	publicPorts = 1000
	iperfPort   = 5201 // iperf3's default
)

const (
	// startTimeout is how long a helper may take to start a command.
	startTimeout = 20 * time.Second
	// runExtraTime is added to the time of a measurement for its time limit.
	runExtraTime = 15 * time.Second
	// stopTimeout is how long a process may take to end after each step of stop.
	stopTimeout = 2 * time.Second
	// holdFiles is the limit of open files to set, within the hard limit, for clients and helpers with thousands of connections.
	holdFiles = 65536
)

// site is a pair of network namespaces with a server. Commands, with or without a helper, run in inside, and the server in There.
type site struct {
	*topo.Topo
	inside *topo.NS
	extra  io.Closer // closes inside, if that is neither Here nor There
	server *process
}

// testbed holds the namespaces and programs that all measurements use.
type testbed struct {
	main    *site
	docker  *site  // for docker0; nil if it could not be created
	self    string // path of this program
	dir     string // XDG_RUNTIME_DIR of the started programs, and a directory of their PATH
	iperf   string // path of iperf3, or ""
	unshare string // path of unshare, or ""
	lanMTU  int    // of the veth pair

	tcpMem int    // maximum receive buffer of TCP in bytes; 0 keeps the machine's
	tcp    string // congestion control and receive buffers, for the report
	used   int    // number of ports that were used
}

func newTestbed(lanMTU, tcpMem int) (tb *testbed, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	raiseFiles()
	tb = &testbed{self: self, lanMTU: lanMTU, tcpMem: tcpMem}
	defer func() {
		if err != nil {
			tb.close()
		}
	}()
	if tb.dir, err = os.MkdirTemp("/tmp", "b"); err != nil {
		return nil, err
	}
	// RootlessKit starts newuidmap, which does not work in the bench's user namespace: see idmap.go.
	for _, name := range []string{newUIDMap, newGIDMap} {
		if err := os.Symlink(self, filepath.Join(tb.dir, name)); err != nil {
			return nil, err
		}
	}
	tb.iperf, _ = exec.LookPath("iperf3")
	tb.unshare, _ = exec.LookPath("unshare")
	tb.main = &site{}
	if tb.main.Topo, err = topo.New(topo.Options{MTU: lanMTU}); err != nil {
		return nil, err
	}
	tb.main.inside = tb.main.Here
	return tb, tb.serveThere(tb.main)
}

// serveThere starts the servers of a site.
func (tb *testbed) serveThere(s *site) (err error) {
	if err := tb.tune(s); err != nil {
		return err
	}
	s.server, err = tb.start(s.There, []string{tb.self, "serve", fmt.Sprint(serverPort), fmt.Sprint(serverPorts)}, nil)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if tb.iperf != "" {
		if err := s.There.Command(tb.iperf, "-s", "-p", fmt.Sprint(iperfPort)).Start(); err != nil {
			return fmt.Errorf("iperf3: %w", err)
		}
	}
	return nil
}

// tune sets the congestion control and receive buffers of TCP that the options set, because some helpers are very slow with the
// settings of some machines.
func (tb *testbed) tune(s *site) error {
	for _, ns := range []*topo.NS{s.Here, s.There} {
		if name := os.Getenv(congestionEnv); name != "" {
			if err := ns.Sysctl("ipv4/tcp_congestion_control", name); err != nil {
				return fmt.Errorf("congestion control %s: %w", name, err)
			}
		}
		if tb.tcpMem != 0 {
			// Minimum and default are those of the kernel.
			if err := ns.Sysctl("ipv4/tcp_rmem", fmt.Sprintf("4096 131072 %d", tb.tcpMem)); err != nil {
				return fmt.Errorf("receive buffers of up to %d bytes: %w", tb.tcpMem, err)
			}
		}
	}
	text, err := s.There.Read("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		return err
	}
	memory, err := s.There.Read("/proc/sys/net/ipv4/tcp_rmem")
	if err != nil {
		return err
	}
	tb.tcp = fmt.Sprintf("%s, tcp_rmem %s", strings.TrimSpace(string(text)), strings.Join(strings.Fields(string(memory)), " "))
	return nil
}

// raiseFiles raises the limit of open files of this process and its children.
func raiseFiles() {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
		// After a call of package syscall, children inherit the limit. Otherwise Go's runtime, which raises it for the process
		// itself, would restore the original limit in its children.
		r.Cur = max(r.Cur, min(r.Max, holdFiles))
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: r.Cur, Max: r.Max})
	}
}

func (tb *testbed) close() {
	for _, s := range []*site{tb.docker, tb.main} {
		if s != nil {
			s.close()
		}
	}
	os.RemoveAll(tb.dir)
}

func (s *site) close() {
	if s.server != nil {
		s.server.stop()
	}
	if s.extra != nil {
		s.extra.Close()
	}
	if s.Topo != nil {
		s.Topo.Close()
	}
}

// site returns the site that h is measured on. docker0 has its own, because its connection tracking would slow the others.
func (tb *testbed) site(h *helper) *site {
	if h.docker {
		return tb.docker
	}
	return tb.main
}

// serverAt returns the address of the server outside, with the next port.
func (tb *testbed) serverAt() string {
	tb.used++
	return netip.AddrPortFrom(topo.There4, uint16(serverPort+tb.used%serverPorts)).String()
}

// publish returns the next port to publish.
func (tb *testbed) publish() int {
	tb.used++
	return publicPort + tb.used%publicPorts
}

// process is a running subcommand of this program, with or without a helper. It is controlled by lines of its standard streams.
type process struct {
	*topo.Cmd
	name   string
	stdin  io.WriteCloser
	lines  chan string // of stdout; closed at its end
	stderr lockedBuffer
}

// start runs argv and waits until it prints "ready".
func (tb *testbed) start(ns *topo.NS, argv, env []string) (*process, error) {
	p := &process{Cmd: tb.command(ns, argv, env), lines: make(chan string, 8)}
	p.name = strings.Join(argv, " ")
	var err error
	if p.stdin, err = p.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.Stderr = &p.stderr
	p.WaitDelay = time.Second // a process that a helper leaves behind may keep the pipes open
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			select {
			case p.lines <- s.Text():
			default: // expect has not read the earlier lines: discard it
			}
		}
	}()
	if _, err := p.expect("ready", startTimeout); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// expect waits for a line that begins with the word and returns the rest of it.
func (p *process) expect(word string, limit time.Duration) (string, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return "", fmt.Errorf("%s ended before it printed %q: %s", p.name, word, p.stderrTail())
			}
			if rest, ok := strings.CutPrefix(line, word); ok {
				return strings.TrimSpace(rest), nil
			}
		case <-timer.C:
			return "", fmt.Errorf("%s did not print %q within %v: %s", p.name, word, limit, p.stderrTail())
		}
	}
}

// stderrTail waits a moment for further output and returns the end of what the process wrote to stderr.
func (p *process) stderrTail() string {
	time.Sleep(50 * time.Millisecond)
	return tail(p.stderr.String())
}

// stop ends the process by EOF on stdin, then by SIGTERM, then by SIGKILL. Then it kills the descendants that are left.
func (p *process) stop() {
	family, _ := processTree(p.Process.Pid)
	p.stdin.Close()
	done := make(chan struct{})
	go func() {
		_ = p.Wait()
		close(done)
	}()
	defer killRemaining(family)
	for _, s := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGKILL} {
		_ = p.Process.Signal(s)
		select {
		case <-done:
			return
		case <-time.After(stopTimeout):
		}
	}
	<-done
}

func (tb *testbed) command(ns *topo.NS, argv, env []string) *topo.Cmd {
	cmd := ns.Command(argv...)
	cmd.Env = append(append(os.Environ(), "XDG_RUNTIME_DIR="+tb.dir), env...)
	return cmd
}

// output runs argv to its end and returns its stdout.
func (tb *testbed) output(ns *topo.NS, argv, env []string, limit time.Duration) ([]byte, error) {
	cmd := tb.command(ns, argv, env)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
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

// do runs the measurement of a client that is ready, and adds the processor time that the client, its peer and the helper used
// meanwhile.
func (tb *testbed) do(client, peer *process, l Load) (o outcome, err error) {
	before, err := tb.times(client, peer)
	if err != nil {
		return o, err
	}
	if _, err := io.WriteString(client.stdin, "go\n"); err != nil {
		return o, fmt.Errorf("%s: %w: %s", client.name, err, client.stderrTail())
	}
	text, err := client.expect("sample", l.Warm+l.Time+runExtraTime)
	if err != nil {
		return o, err
	}
	after, err := tb.times(client, peer)
	if err != nil {
		return o, err
	}
	o.helper = after.helper - before.helper
	o.total = o.helper + after.own - before.own
	if err := json.Unmarshal([]byte(text), &o.Sample); err != nil {
		return o, fmt.Errorf("%s printed %q: %w", client.name, text, err)
	}
	return o, nil
}

// tail returns the end of an output, short enough for an error message.
func tail(s string) string {
	const most = 300
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}
