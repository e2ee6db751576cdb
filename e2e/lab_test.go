package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// Addresses of the default sandbox.
var (
	gateway4 = netip.MustParseAddr("10.0.2.2")
	gateway6 = netip.MustParseAddr("fd52:6e65:7400::2")
	guest4   = netip.MustParseAddr("10.0.2.100")
	guest6   = netip.MustParseAddr("fd52:6e65:7400::100")
)

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
	any4      = netip.IPv4Unspecified()
	any6      = netip.IPv6Unspecified()
)

// opPatience bounds one operation.
const opPatience = guest.Patience

// lab is the environment of one test: the namespaces "here" and "there", a runtime directory, and what was started.
type lab struct {
	*testing.T
	*topo.Topo
	runtime string   // XDG_RUNTIME_DIR; short, because paths of unix sockets are
	flags   []string // further flags of every sandbox
	// The link and the datapath that flags ask for; "" for the default.
	kind, datapath string
	started        []*topo.Cmd
}

func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabWith(t, topo.Options{})
}

func newLabWith(t *testing.T, o topo.Options) *lab {
	t.Helper()
	tp, err := topo.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tp.Close)
	dir, err := os.MkdirTemp("/tmp", "e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &lab{T: t, Topo: tp, runtime: dir}
}

// command prepares one of our programs in "here".
func (l *lab) command(name string, args ...string) *topo.Cmd {
	cmd := l.Here.Command(append([]string{filepath.Join(bins, name)}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+l.runtime, "GOTRACEBACK=all")
	return cmd
}

// launch starts a command and records it in started.
func (l *lab) launch(cmd *topo.Cmd) {
	l.Helper()
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.started = append(l.started, cmd)
}

// result is the exit code and the output of a finished program.
type result struct {
	code           int
	stdout, stderr string
}

// finish runs a command to its end.
func (l *lab) finish(cmd *topo.Cmd) result {
	l.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 2 * time.Second
	l.launch(cmd)
	timer := time.AfterFunc(opPatience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.Errorf("%v: %v", cmd.Args, err)
	}
	code := cmd.ProcessState.ExitCode()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		code = -int(ws.Signal())
	}
	return result{code, stdout.String(), stderr.String()}
}

// once runs a sandbox around argv to its end.
func (l *lab) once(flags []string, argv ...string) result {
	l.Helper()
	return l.finish(l.command("rootless-run", append(append(append(append([]string{}, l.flags...), flags...), "--"), argv...)...))
}

// asRoot is the flag for commands that administer the network inside, or that use raw sockets, packet sockets or marks. The tests of
// isolation have it as well: it is the identity with the most rights.
const asRoot = "--userns=root"

// self is the path of the test binary, which is the guest program as well.
func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// manage runs rootless-net and fails the test when that fails.
func (l *lab) manage(args ...string) string {
	l.Helper()
	r := l.finish(l.command("rootless-net", args...))
	if r.code != 0 {
		l.Fatalf("rootless-net %v: exit %d: %s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// sandbox is a running sandbox with the agent as its command.
type sandbox struct {
	*lab
	cmd    *topo.Cmd
	name   string
	inside *guest.Agent
	stderr *buffer
	once   sync.Once
}

var sandboxes struct {
	sync.Mutex
	n int
}

// start runs a sandbox with the agent inside, and ends it with the test.
func (l *lab) start(flags ...string) *sandbox {
	l.Helper()
	sandboxes.Lock()
	sandboxes.n++
	name := fmt.Sprintf("box%d", sandboxes.n)
	sandboxes.Unlock()
	args := append(append([]string{"--name", name}, l.flags...), flags...)
	return l.agent(name, l.command("rootless-run", append(append(args, "--"), agentProgram()...)...))
}

// agent starts cmd, which runs an agent, and waits for the agent's first line.
func (l *lab) agent(name string, cmd *topo.Cmd) *sandbox {
	l.Helper()
	s := &sandbox{lab: l, cmd: cmd, name: name, stderr: &buffer{}}
	in, err := cmd.StdinPipe()
	if err != nil {
		l.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	cmd.Stderr = s.stderr
	l.launch(cmd)
	s.inside = guest.NewAgent(in, out)
	l.Cleanup(s.stop)
	if err := s.inside.AwaitReady(); err != nil {
		l.Fatalf("%v: %v; stderr:\n%s", cmd.Args, s.explain(err), s.stderr)
	}
	return s
}

// stop lets the command end, and waits for the supervisor.
func (s *sandbox) stop() {
	s.once.Do(func() {
		s.inside.CloseInput()
		timer := time.AfterFunc(5*time.Second, func() {
			s.Errorf("%s did not end within 5 s of its command's end of input", s.name)
			s.dumpAndKill()
		})
		defer timer.Stop()
		s.inside.Drain()
		_ = s.cmd.Wait()
		if text := s.stderr.String(); strings.Contains(text, "panic:") || strings.Contains(text, "DATA RACE") {
			s.Errorf("%s printed:\n%s", s.name, text)
		}
	})
}

// dumpAndKill makes a supervisor that hangs print its stacks on stderr, and kills it.
func (s *sandbox) dumpAndKill() {
	// Of the signals that make the Go runtime print all stacks, one that is not forwarded to the command.
	_ = s.cmd.Process.Signal(syscall.SIGSEGV)
	time.Sleep(time.Second)
	_ = s.cmd.Process.Kill()
	s.Logf("%s was in:\n%s", s.name, s.stderr)
}

// explain adds the exit status of the program to an error of its agent.
func (s *sandbox) explain(err error) error {
	if errors.Is(err, guest.ErrAgentEnded) {
		_ = s.cmd.Wait()
		return fmt.Errorf("%w: %v", err, s.cmd.ProcessState)
	}
	return err
}

// rss is the supervisor's resident memory in bytes.
func (s *sandbox) rss() int {
	s.Helper()
	kib, err := strconv.Atoi(strings.TrimSuffix(status(s.T, s.cmd.Process.Pid, "VmRSS"), " kB"))
	if err != nil {
		s.Fatal(err)
	}
	return kib << 10
}

// status is a field of /proc/PID/status.
func status(t *testing.T, pid int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("process %d has no %s", pid, field)
	return ""
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve runs a server in a namespace. It returns the address and a counter of the clients.
func (l *lab) serve(ns *topo.NS, addr netip.AddrPort, server guest.Server) (netip.AddrPort, *accepts) {
	l.Helper()
	return l.serveFunc(ns, addr, server.Handle)
}

// serveFunc is serve with a function that handles each connection.
func (l *lab) serveFunc(ns *topo.NS, addr netip.AddrPort, handle func(*net.TCPConn)) (netip.AddrPort, *accepts) {
	l.Helper()
	listener, err := ns.Listen("tcp", addr.String())
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { listener.Close() })
	a := &accepts{}
	go guest.AcceptAll(listener, func(c *net.TCPConn) {
		a.add()
		handle(c)
	})
	return listener.Addr().(*net.TCPAddr).AddrPort(), a
}

// serveUDP answers datagrams in a namespace as guest.EchoUDP. It returns the address and a counter of the datagrams.
func (l *lab) serveUDP(ns *topo.NS, addr netip.AddrPort) (netip.AddrPort, *accepts) {
	l.Helper()
	c, err := ns.ListenPacket("udp", addr.String())
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { c.Close() })
	a := &accepts{}
	go guest.EchoUDP(countingConn{c, a})
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), a
}

// accepts counts the clients or datagrams that reached a server.
type accepts struct {
	mu sync.Mutex
	n  int
}

func (a *accepts) add() {
	a.mu.Lock()
	a.n++
	a.mu.Unlock()
}

func (a *accepts) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

type countingConn struct {
	net.PacketConn
	a *accepts
}

func (c countingConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(b)
	if err == nil {
		c.a.add()
	}
	return n, from, err
}

// at is an address with a port.
func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// families are the addresses of "here" and "there" in each address family.
func (l *lab) families() []family {
	f := []family{{topo.Here4, topo.There4, topo.There4b}}
	if l.IPv6 {
		f = append(f, family{topo.Here6, topo.There6, topo.There6b})
	}
	return f
}

type family struct{ here, there, there2 netip.Addr }
