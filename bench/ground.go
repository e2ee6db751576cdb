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
	// serverPort is the first of the server outside, serverPorts how many it has. Measurements take them in turn: the
	// TIME_WAIT of one is over (60 s) before its port comes again.
	serverPort  = 20000
	serverPorts = 200
	// publicPort is the first of the published ones, which are taken in turn likewise.
	publicPort  = 10000
	publicPorts = 1000
	iperfPort   = 5201 // iperf3's own default
)

const (
	// startPatience is how long a helper may take to get a command behind it up.
	startPatience = 20 * time.Second
	// runPatience is added to a measurement's own time before it is given up.
	runPatience = 15 * time.Second
	// stopPatience is how long a process may take for each step of being stopped.
	stopPatience = 2 * time.Second
	// holdFiles are descriptors for clients and helpers with thousands of connections, where the machine allows it.
	holdFiles = 65536
)

// site is a pair of namespaces with a server: commands run in inside, behind a helper or not, and the server in There.
type site struct {
	*topo.Topo
	inside *topo.NS
	extra  io.Closer // of what inside is, when it is neither Here nor There
	server *process
}

// ground is where measurements are taken.
type ground struct {
	main    *site
	docker  *site  // of docker0's way; nil where it could not be made
	self    string // path of this program
	dir     string // XDG_RUNTIME_DIR of what is started, and a PATH
	iperf   string // path of iperf3, or ""
	unshare string // path of unshare, or ""
	lanMTU  int    // of the link outside

	tcpMem int    // greatest receive buffer of TCP; 0 leaves the machine's
	tcp    string // what TCP is set to
	turn   int    // of ports
}

func newGround(lanMTU, tcpMem int) (g *ground, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	raiseFiles()
	g = &ground{self: self, lanMTU: lanMTU, tcpMem: tcpMem}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.dir, err = os.MkdirTemp("/tmp", "b"); err != nil {
		return nil, err
	}
	// RootlessKit wants newuidmap, which has no power in a namespace where root is nobody: see idmap.go.
	for _, name := range []string{newUIDMap, newGIDMap} {
		if err := os.Symlink(self, filepath.Join(g.dir, name)); err != nil {
			return nil, err
		}
	}
	g.iperf, _ = exec.LookPath("iperf3")
	g.unshare, _ = exec.LookPath("unshare")
	g.main = &site{}
	if g.main.Topo, err = topo.New(topo.Options{MTU: lanMTU}); err != nil {
		return nil, err
	}
	g.main.inside = g.main.Here
	return g, g.serveThere(g.main)
}

// serveThere starts the servers of a site.
func (g *ground) serveThere(s *site) (err error) {
	if err := g.tune(s); err != nil {
		return err
	}
	s.server, err = g.start(s.There, []string{g.self, "serve", fmt.Sprint(serverPort), fmt.Sprint(serverPorts)}, nil)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if g.iperf != "" {
		if err := s.There.Command(g.iperf, "-s", "-p", fmt.Sprint(iperfPort)).Start(); err != nil {
			return fmt.Errorf("iperf3: %w", err)
		}
	}
	return nil
}

// tune sets TCP of the namespaces as the user asked for. Some helpers collapse with what one machine or another has.
func (g *ground) tune(s *site) error {
	for _, ns := range []*topo.NS{s.Here, s.There} {
		if name := os.Getenv(congestionEnv); name != "" {
			if err := ns.Sysctl("ipv4/tcp_congestion_control", name); err != nil {
				return fmt.Errorf("congestion control %s: %w", name, err)
			}
		}
		if g.tcpMem != 0 {
			// The first two are the kernel's own.
			if err := ns.Sysctl("ipv4/tcp_rmem", fmt.Sprintf("4096 131072 %d", g.tcpMem)); err != nil {
				return fmt.Errorf("receive buffers of up to %d bytes: %w", g.tcpMem, err)
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
	g.tcp = fmt.Sprintf("%s, tcp_rmem %s", strings.TrimSpace(string(text)), strings.Join(strings.Fields(string(memory)), " "))
	return nil
}

func raiseFiles() {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
		// Set by hand, it is inherited; Go would give its children back what it found.
		r.Cur = max(r.Cur, min(r.Max, holdFiles))
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: r.Cur, Max: r.Max})
	}
}

func (g *ground) close() {
	for _, s := range []*site{g.docker, g.main} {
		if s != nil {
			s.close()
		}
	}
	os.RemoveAll(g.dir)
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

// site is where h is measured. docker0 has its own: connection tracking would slow the others, too.
func (g *ground) site(h *helper) *site {
	if h.docker {
		return g.docker
	}
	return g.main
}

// serverAt is the address of the server outside, another one each time.
func (g *ground) serverAt() string {
	g.turn++
	return netip.AddrPortFrom(topo.There4, uint16(serverPort+g.turn%serverPorts)).String()
}

// publish is a port to publish, another one each time.
func (g *ground) publish() int {
	g.turn++
	return publicPort + g.turn%publicPorts
}

// process is a running command of ours, perhaps behind a helper, that talks by lines.
type process struct {
	*topo.Cmd
	name   string
	stdin  io.WriteCloser
	lines  chan string // of stdout; closed at its end
	stderr lockedBuffer
}

// start runs argv and waits until it prints "ready".
func (g *ground) start(ns *topo.NS, argv, env []string) (*process, error) {
	p := &process{Cmd: g.command(ns, argv, env), lines: make(chan string, 8)}
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
	p.WaitDelay = time.Second // a left-over of a helper's must not hold the pipes for ever
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			select {
			case p.lines <- s.Text():
			default: // nobody asked for so many
			}
		}
	}()
	if _, err := p.expect("ready", startPatience); err != nil {
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
				return "", fmt.Errorf("%s ended before it said %q: %s", p.name, word, p.complaint())
			}
			if rest, ok := strings.CutPrefix(line, word); ok {
				return strings.TrimSpace(rest), nil
			}
		case <-timer.C:
			return "", fmt.Errorf("%s did not say %q in %v: %s", p.name, word, limit, p.complaint())
		}
	}
}

// complaint is what the process wrote to stderr, given a moment to arrive.
func (p *process) complaint() string {
	time.Sleep(50 * time.Millisecond)
	return tail(p.stderr.String())
}

// stop ends the process as its user would: EOF on stdin, then SIGTERM, then SIGKILL; then what it leaves behind.
func (p *process) stop() {
	family, _ := processTree(p.Process.Pid)
	p.stdin.Close()
	done := make(chan struct{})
	go func() {
		_ = p.Wait()
		close(done)
	}()
	defer killLeft(family)
	for _, s := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGKILL} {
		_ = p.Process.Signal(s)
		select {
		case <-done:
			return
		case <-time.After(stopPatience):
		}
	}
	<-done
}

func (g *ground) command(ns *topo.NS, argv, env []string) *topo.Cmd {
	cmd := ns.Command(argv...)
	cmd.Env = append(append(os.Environ(), "XDG_RUNTIME_DIR="+g.dir), env...)
	return cmd
}

// output runs argv to its end and returns its stdout.
func (g *ground) output(ns *topo.NS, argv, env []string, limit time.Duration) ([]byte, error) {
	cmd := g.command(ns, argv, env)
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

// do lets a client that is ready measure, and adds the processor time that it, the helper and its peer took meanwhile.
func (g *ground) do(client, peer *process, l Load) (o outcome, err error) {
	before, err := g.times(client, peer)
	if err != nil {
		return o, err
	}
	if _, err := io.WriteString(client.stdin, "go\n"); err != nil {
		return o, fmt.Errorf("%s: %w: %s", client.name, err, client.complaint())
	}
	text, err := client.expect("sample", l.Warm+l.Time+runPatience)
	if err != nil {
		return o, err
	}
	after, err := g.times(client, peer)
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

// tail is the end of an output, short enough for an error.
func tail(s string) string {
	const most = 300
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}
