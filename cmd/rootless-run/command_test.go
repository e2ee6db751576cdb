package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet"
)

// TestMain runs the program in place of the tests if the environment variable is set, with fakeRun in place of the library.
func TestMain(m *testing.M) {
	if os.Getenv(detachedVar) != "" || os.Getenv("ROOTLESS_RUN_TEST_MAIN") != "" {
		os.Exit(program{run: fakeRun, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}.main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// fakeRun replaces rootlessnet.Run; Argv[0] selects its result.
func fakeRun(ctx context.Context, c rootlessnet.Config) (int, error) {
	switch c.Argv[0] {
	case "missing":
		return 127, errors.New(`exec: "missing": executable file not found in $PATH`)
	case "broken":
		return 0, errors.New("no network")
	case "conflict":
		return 125, &rootlessnet.UsageError{Field: "Publish", Err: errors.New("conflicting options: x")}
	case "warn":
		c.Logger.Warn("Published ports are discarded when using host network mode")
		c.Logger.Info("unseen")
	case "hang":
		fmt.Println("hangs")
		return 125, fmt.Errorf("%v came first", <-c.Signals)
	}
	c.OnStart(rootlessnet.Started{ID: strings.Repeat("ab", 32)})
	switch c.Argv[0] {
	case "signal":
		fmt.Println("ready")
		return 128 + int((<-c.Signals).(syscall.Signal)), nil
	case "stay":
		time.Sleep(300 * time.Millisecond)
	}
	return len(c.Argv), nil
}

type result struct {
	code        int
	out, errOut string
	config      *rootlessnet.Config
}

// invoke runs the program in this process. Standard input is not a terminal.
func invoke(t *testing.T, args ...string) result {
	t.Helper()
	var r result
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	in, out, errOut := file("in"), file("out"), file("err")
	p := program{stdin: in, stdout: out, stderr: errOut, run: func(ctx context.Context, c rootlessnet.Config) (int, error) {
		r.config = &c
		return fakeRun(ctx, c)
	}}
	r.code = p.main(args)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	r.out, r.errOut = read("out"), read("err")
	return r
}

const see = "\nSee 'rootless-run --help'.\n"

func TestErrorsAndExitCodes(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"", 125, `rootless-run: "rootless-run" requires at least 1 argument.` + see},
		{"--detach", 125, `rootless-run: "rootless-run" requires at least 1 argument.` + see},
		{"-p x:80 true", 125, `rootless-run: invalid argument "x:80" for "-p, --publish" flag: invalid hostPort: x` + see},
		{"-p 80:0 true", 125, `rootless-run: invalid argument "80:0" for "-p, --publish" flag: invalid containerPort: 0` + see},
		{"-p 80:80/x true", 125, `rootless-run: invalid argument "80:80/x" for "-p, --publish" flag: invalid proto: x` + see},
		{"-p 8000-8001:80-82 true", 125, `rootless-run: invalid argument "8000-8001:80-82" for "-p, --publish" flag: ` +
			`invalid ranges specified for container and host Ports: 80-82 and 8000-8001` + see},
		{"--add-host x true", 125, `rootless-run: invalid argument "x" for "--add-host" flag: bad format for add-host: "x"` + see},
		{"--add-host x:y true", 125, `rootless-run: invalid argument "x:y" for "--add-host" flag: invalid IP address in add-host: "y"` + see},
		{"--mac-address x true", 125, `rootless-run: invalid argument "x" for "--mac-address" flag: x is not a valid mac address` + see},
		{"--dns x true", 125, `rootless-run: invalid argument "x" for "--dns" flag: IP address is not correctly formatted: x` + see},
		{"--ip ::1 true", 125, `rootless-run: invalid argument "::1" for "--ip" flag: invalid IPv4 address: ::1` + see},
		{"--subnet x true", 125, `rootless-run: invalid argument "x" for "--subnet" flag: invalid CIDR address: x` + see},
		{"--host-loopback 0 true", 125, `rootless-run: invalid argument "0" for "--host-loopback" flag: invalid port: 0` + see},
		{"--log-level x true", 125, `rootless-run: invalid argument "x" for "--log-level" flag: must be debug, info, warn or error` + see},
		{"--nope true", 125, "rootless-run: unknown flag: --nope" + see},
		{"--name", 125, "rootless-run: flag needs an argument: --name" + see},
		{"--network foo --detach true", 125, "rootless-run: network foo not found" + see},
		{"conflict", 125, "rootless-run: conflicting options: x" + see},
		{"broken", 125, "rootless-run: no network\n"},
		{"missing", 127, "rootless-run: exec: \"missing\": executable file not found in $PATH\n"},
		{"warn", 1, "WARNING: Published ports are discarded when using host network mode\n"},
		{"a -p x:80 c", 4, ""},
		{"-- a --name", 2, ""},
	} {
		r := invoke(t, strings.Fields(c.args)...)
		if r.code != c.code || r.errOut != c.want || r.out != "" {
			t.Errorf("rootless-run %s: exit %d\n got %q\nwant %q, exit %d", c.args, r.code, r.errOut, c.want, c.code)
		}
	}
}

func TestFlagsBecomeTheConfig(t *testing.T) {
	r := invoke(t, "--network", "bridge", "-p", "8080:80", "--publish", "published=53,target=53,protocol=udp", "-P",
		"--name", "web", "--hostname", "h", "--dns", "192.0.2.1", "--dns", "2001:db8::1", "--dns-search", "a.example",
		"--dns-opt", "ndots:2", "--add-host", "db:192.0.2.7", "--ip", "10.0.2.9", "--ip6", "fd00::9", "--mac-address",
		"02:00:00:00:00:01", "--subnet", "10.0.2.0/24", "--subnet", "fd00::/64", "--mtu", "1500", "--host-loopback",
		"5432,8080", "--userns", "root", "--pid", "--pcap", "f", "--link", "packet", "cmd", "--flag")
	if r.config == nil {
		t.Fatal(r.errOut)
	}
	c := *r.config
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for _, f := range []struct{ name, got, want string }{
		{"Argv", fmt.Sprint(c.Argv), "[cmd --flag]"},
		{"Publish", fmt.Sprint(c.Publish), "[8080:80 published=53,target=53,protocol=udp]"},
		{"DNS", fmt.Sprint(c.DNS, c.DNSSearch, c.DNSOptions), "[192.0.2.1 2001:db8::1] [a.example] [ndots:2]"},
		{"names", fmt.Sprint(c.Name, c.Hostname, c.ExtraHosts), "webh[db:192.0.2.7]"},
		{"addresses", fmt.Sprint(c.IP, c.IP6, c.MAC, c.Subnet, c.Subnet6), "10.0.2.9 fd00::9 02:00:00:00:00:01 10.0.2.0/24 fd00::/64"},
		{"rest", fmt.Sprintln(c.MTU, c.HostLoopback, c.UserNS, c.PIDNamespace, c.PCAP, c.Link, c.PublishAll, c.DisableIPv6),
			"1500 {false [5432 8080]} root true f packet true false\n"},
	} {
		if f.got != f.want {
			t.Errorf("%s: %s, want %s", f.name, f.got, f.want)
		}
	}
	if c.UDPFullCone {
		t.Error("full-cone filtering without its flag")
	}
	if r := invoke(t, "--udp-full-cone", "x"); !r.config.UDPFullCone {
		t.Error("--udp-full-cone does not set UDPFullCone")
	}
	if r := invoke(t, "--ipv6=false", "x"); !r.config.DisableIPv6 {
		t.Error("--ipv6=false does not set DisableIPv6")
	}
}

// TestNoFlagsIsTheZeroConfig: without flags the Config has the documented default values.
func TestNoFlagsIsTheZeroConfig(t *testing.T) {
	c := *invoke(t, "cmd").config
	want := rootlessnet.Config{Argv: []string{"cmd"}, Network: rootlessnet.NetworkBridge, MTU: rootlessnet.DefaultMTU,
		UserNS: rootlessnet.UserNSKeepID, JobControl: true, Link: rootlessnet.LinkAuto, Datapath: rootlessnet.DatapathAuto, TCPBuffers: rootlessnet.DefaultTCPBuffers, Confine: true,
		Env: c.Env, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, Logger: c.Logger, Signals: c.Signals}
	c.OnStart, c.OnPublish = nil, nil
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
}

func TestVersionAndCompletion(t *testing.T) {
	if r := invoke(t, "--version"); r.code != 0 || r.out != "rootless-run version unknown\n" {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, "--help"); r.code != 0 || !strings.Contains(r.out, "--publish") {
		t.Errorf("%+v", r)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := invoke(t, "completion", shell); r.code != 0 || !strings.Contains(r.out, "__complete") || r.config != nil {
			t.Errorf("%s: %d %.80s", shell, r.code, r.out)
		}
	}
	for _, args := range []string{"-- completion bash", "completion tcsh", "--pid completion bash"} {
		if r := invoke(t, strings.Fields(args)...); r.config == nil {
			t.Error("not run:", args)
		}
	}
}

// again runs the test binary as the program.
func again(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "ROOTLESS_RUN_TEST_MAIN=1")
	return cmd
}

func TestDetach(t *testing.T) {
	for _, c := range []struct {
		cmd    string
		code   int
		out    string
		errOut string
	}{
		{"stay", 0, strings.Repeat("ab", 32) + "\n", ""},
		{"warn", 0, strings.Repeat("ab", 32) + "\n", "WARNING: Published ports are discarded when using host network mode\n"},
		{"missing", 127, "", "rootless-run: exec: \"missing\": executable file not found in $PATH\n"},
		{"broken", 125, "", "rootless-run: no network\n"},
		{"conflict", 125, "", "rootless-run: conflicting options: x" + see},
	} {
		t.Run(c.cmd, func(t *testing.T) {
			cmd := again("--detach", c.cmd)
			var out, errOut strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &errOut
			begin := time.Now()
			cmd.Run() // returns only when no process has the pipes of the output open any more
			if code := cmd.ProcessState.ExitCode(); code != c.code || out.String() != c.out || errOut.String() != c.errOut {
				t.Errorf("exit %d, %q, %q", code, out.String(), errOut.String())
			}
			if c.cmd == "stay" && time.Since(begin) > 250*time.Millisecond {
				t.Log("slow, or waited for the command:", time.Since(begin))
			}
		})
	}
}

func TestSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1} {
		if signal.Ignored(sig) { // such as by nohup; children inherit that
			t.Logf("not tried: %v is ignored here", sig)
			continue
		}
		cmd := again("signal")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(out, make([]byte, len("ready\n")))
		cmd.Process.Signal(sig)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(sig) {
			t.Errorf("%v: %v", sig, cmd.ProcessState)
		}
	}
}

func TestSignalBeforeTheStart(t *testing.T) {
	cmd := again("hang")
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.ReadFull(out, make([]byte, len("hangs\n")))
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.Contains(errOut.String(), "terminated came first") {
		t.Errorf("%v %q", cmd.ProcessState, errOut.String())
	}
}

func TestListenersArePassed(t *testing.T) {
	if n := listenFDs(); n != 0 {
		t.Fatal(n)
	}
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "2")
	if n := listenFDs(); n != 0 {
		t.Error("meant for another process:", n)
	}
	t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
	if n := listenFDs(); n != 2 {
		t.Error(n)
	}
	env := withoutOurVariables([]string{"A=1", "LISTEN_FDS=2", "LISTEN_PID=7", "LISTEN_FDNAMES=x", listenersVar + "=1", "B=2"})
	if fmt.Sprint(env) != "[A=1 B=2]" {
		t.Error(env)
	}
}

func TestLogLines(t *testing.T) {
	r := invoke(t, "--log-level", "info", "warn")
	if want := "WARNING: Published ports are discarded when using host network mode\nrootless-run: info: unseen\n"; r.errOut != want {
		t.Errorf("%q", r.errOut)
	}
}
