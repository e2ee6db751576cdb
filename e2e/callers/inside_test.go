package callers

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
)

// containerProgram is this test binary, which is the guest program, in the containers' image.
const containerProgram = "/bin/guest"

// self is the path of the test binary outside of containers.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// agent is a guest agent that a caller has started: in a namespace, in a container.
type agent struct {
	*user
	cmd    *exec.Cmd
	inside *guest.Agent
	stderr bytes.Buffer
}

// agent runs argv, which ends with the command line of an agent, and waits until the agent runs. It ends with the test, if not before.
func (u *user) agent(argv ...string) *agent {
	u.Helper()
	a := &agent{user: u, cmd: u.command(argv...)}
	in, err := a.cmd.StdinPipe()
	if err != nil {
		u.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		u.Fatal(err)
	}
	a.cmd.Stderr = &a.stderr
	if err := a.cmd.Start(); err != nil {
		u.Fatal(err)
	}
	a.inside = guest.NewAgent(in, out)
	u.Cleanup(func() { _ = a.end() })
	timer := time.AfterFunc(patience, func() { _ = a.cmd.Process.Kill() })
	defer timer.Stop()
	if err := a.inside.AwaitReady(); err != nil {
		werr := a.end()
		u.Fatalf("%v: %v; it ended: %v\n%s", a.cmd.Args, err, werr, &a.stderr)
	}
	return a
}

// end closes the agent's input, waits for the program that started it, and returns how that ended.
func (a *agent) end() error {
	if a.cmd.ProcessState != nil {
		return nil
	}
	a.inside.CloseInput()
	timer := time.AfterFunc(patience, func() { _ = a.cmd.Process.Kill() })
	defer timer.Stop()
	a.inside.Drain()
	return a.cmd.Wait()
}

// do has the agent carry out one operation.
func do[R any](a *agent, op guest.Operation[R]) R {
	a.Helper()
	result, err := guest.Do(a.inside, op)
	if err != nil {
		a.Fatalf("inside, %s: %v\n%s", guest.Request(op), err, &a.stderr)
	}
	return result
}

// sh runs a script beside the agent, and returns its output.
func (a *agent) sh(script string) string {
	a.Helper()
	return do(a, guest.RunShell{Script: script}).Output
}

// get sends a request to an HTTP server from inside.
func (a *agent) get(url string) guest.HTTPAnswer {
	a.Helper()
	return do(a, guest.GetHTTP{URL: url})
}

// ask sends a datagram to a UDP server from inside.
func (a *agent) ask(host string, port uint16) guest.Echoed {
	a.Helper()
	return do(a, guest.AskUDP{To: guest.Target{Host: host, Port: port}, Text: "hello", Timeout: 3 * time.Second})
}

// once has a program run one operation: the operation's command line is appended to argv.
func once[R any](u *user, op guest.Operation[R], argv ...string) R {
	u.Helper()
	result, err := tryOnce(u, op, argv...)
	if err != nil {
		u.Fatalf("%v, %s: %v", argv, guest.Request(op), err)
	}
	return result
}

// tryOnce is once for a program that may fail.
func tryOnce[R any](u *user, op guest.Operation[R], argv ...string) (result R, err error) {
	u.Helper()
	stdout, stderr, err := u.separately(append(argv, guest.Command(op)...)...)
	if err != nil {
		return result, fmt.Errorf("%w: %s%s", err, stdout, stderr)
	}
	return guest.Decode(op, stdout)
}

// begin starts a server that goes on in the background until the test ends: the operation's command line follows the words
// of argv. It returns when the server listens.
func begin[R any](u *user, op guest.Operation[R], argv ...string) (address R) {
	u.Helper()
	cmd := u.command(append(argv, guest.Command(op)...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		u.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		u.Fatal(err)
	}
	u.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line := make([]byte, 4096)
	n, err := out.Read(line)
	if err == nil {
		address, err = guest.Decode(op, string(line[:n]))
	}
	if err != nil {
		u.Fatalf("%v: %v", cmd.Args, err)
	}
	return address
}

// shellWords is a command line for sh(1).
func shellWords(argv ...string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// url is the address of an HTTP server.
func url(host string, port uint16) string {
	return "http://" + net.JoinHostPort(host, strconv.Itoa(int(port))) + "/"
}

// get sends a request to an HTTP server from the host.
func get(host string, port uint16) guest.HTTPAnswer { return guest.GetHTTP{URL: url(host, port)}.Get() }

// ask sends a datagram to a UDP server from the host.
func ask(host string, port uint16) guest.Echoed {
	c, err := net.Dial("udp", guest.Target{Host: host, Port: port}.String())
	if err != nil {
		return guest.Echoed{Outcome: guest.OutcomeOf(err)}
	}
	defer c.Close()
	return guest.AskUDP{Text: "hello", Timeout: 3 * time.Second}.On(c)
}

// moveBulk moves much data from the host to a server and back.
func moveBulk(host string, port uint16) guest.Outcome {
	return guest.MoveBulk{Server: guest.Target{Host: host, Port: port}}.Move()
}

// wantSeen expects an answer over HTTP to a client that the server sees as that address; "" for any.
func wantSeen(t *testing.T, what string, got guest.HTTPAnswer, client string) {
	t.Helper()
	if problem := notSeen(got, client); problem != "" {
		t.Errorf("%s: %s", what, problem)
	}
}

// notSeen describes what is wrong with an answer; "" if nothing is.
func notSeen(got guest.HTTPAnswer, client string) string {
	if got.Outcome != guest.OK || client != "" && got.Client.Addr().WithZone("") != netip.MustParseAddr(client) {
		return fmt.Sprintf("%+v; want an answer to the client %s", got, client)
	}
	return ""
}

// soonSeen repeats the request until the answer is as wantSeen expects it.
func soonSeen(t *testing.T, within time.Duration, client string, ask func() guest.HTTPAnswer) {
	t.Helper()
	eventually(t, within, func() string { return notSeen(ask(), client) })
}

// wantOutcome expects that a request over HTTP fails that way.
func wantOutcome(t *testing.T, what string, got guest.HTTPAnswer, outcome guest.Outcome) {
	t.Helper()
	if got.Outcome != outcome {
		t.Errorf("%s: %+v; want %v", what, got, outcome)
	}
}

// wantUDPSeen expects the echo of a datagram of a client that the server sees as that address; "" for any.
func wantUDPSeen(t *testing.T, what string, got guest.Echoed, client string) {
	t.Helper()
	if got.Outcome != guest.OK || got.Text != "hello" || client != "" && got.Client.Addr().WithZone("") != netip.MustParseAddr(client) {
		t.Errorf("%s: %+v; want the echo, and the client %s", what, got, client)
	}
}

// wantBulk expects that all data arrived.
func wantBulk(t *testing.T, what string, got guest.Outcome) {
	t.Helper()
	if got != guest.OK {
		t.Errorf("%s: %v", what, got)
	}
}

// serveHost answers HTTP clients on a port of the host, on every address, until the test ends.
func serveHost(t *testing.T) (port uint16) {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: guest.ServeClientAddress}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// serveEcho is an Echo server on a port of the host, on every address, until the test ends.
func serveEcho(t *testing.T) (port uint16) {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	go guest.AcceptAll(l, guest.Echo.Handle)
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}
