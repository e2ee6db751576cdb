package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRefusedByName: a flag of docker run without a meaning here is named, with and without a value, and nothing is run.
func TestRefusedByName(t *testing.T) {
	for name := range refused {
		short, long, both := strings.Cut(name, ",")
		if !both {
			long = name
		}
		forms := [][]string{{"--" + long, "x", "true"}, {"--" + long + "=x", "true"}}
		if both {
			forms = append(forms, []string{"-" + short, "src:/dst", "--", "true"}, []string{"-" + short + "x", "true"})
		}
		for _, args := range forms {
			r := invoke(t, args...)
			if r.code != 125 || r.config != nil || r.out != "" || !strings.Contains(r.errOut, "--"+long+" is not supported: ") || !strings.HasSuffix(r.errOut, see) {
				t.Errorf("%q: exit %d, %q", args, r.code, r.errOut)
			}
		}
	}
	want := "rootless-run: -v, --volume is not supported: the command sees this host's files at their own paths, with your rights (for the version: --version)" + see
	if r := invoke(t, "-v", "src:/dst", "--", "true"); r.errOut != want {
		t.Errorf("%q", r.errOut)
	}
	if r := invoke(t, "-v"); r.errOut != want || r.code != 125 {
		t.Errorf("-v alone: %q", r.errOut)
	}
}

func TestDockerErrors(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--network none --network host true", `invalid argument "host" for "--network" flag: conflicting options: network none and network host`},
		{"--net none --network host true", `invalid argument "host" for "--network" flag: conflicting options: network none and network host`},
		{"--pid container:web true", "--pid container:NAME is not supported: rootless-net exec NAME runs a command in all namespaces of a sandbox"},
		{"--pid=x true", `invalid argument "x" for "--pid" flag: invalid PID mode`},
		{"--expose 1:2 true", `invalid argument "1:2" for "--expose" flag: invalid port format for --expose: 1:2`},
		{"--expose x true", `invalid argument "x" for "--expose" flag: invalid range format for --expose: x, error: invalid containerPort: x`},
		{"--sysctl kernel.sem=1 true", `invalid argument "kernel.sem=1" for "--sysctl" flag: sysctl 'kernel.sem=1' is not allowed: only net.* belongs to the sandbox`},
		{"-e =x true", `invalid argument "=x" for "-e, --env" flag: invalid environment variable: =x`},
		{"-l =x true", `invalid argument "=x" for "-l, --label" flag: invalid label '=x': empty name`},
		{"--log-driver journald true", "--log-driver journald is not supported: the output is kept in a file (local) or not (none); pipe it to another program to send it elsewhere"},
		{"-p published=1,target=1,mode=ingress true", `invalid argument "published=1,target=1,mode=ingress" for "-p, --publish" flag: ` +
			"unsupported publish mode: ingress (it needs the routing mesh of a swarm; mode=host is what -p does)"},
	} {
		r := invoke(t, strings.Fields(c.args)...)
		if want := "rootless-run: " + c.want + see; r.code != 125 || r.errOut != want || r.config != nil {
			t.Errorf("%s: exit %d\n got %q\nwant %q", c.args, r.code, r.errOut, want)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"-it true", "rootless-run: the input device is not a TTY\n"},
		{"--env-file /no/such true", "rootless-run: open /no/such: no such file or directory\n"},
	} {
		if r := invoke(t, strings.Fields(c.args)...); r.code != 125 || r.errOut != c.want || r.config != nil {
			t.Errorf("%s: exit %d, %q", c.args, r.code, r.errOut)
		}
	}
}

func TestDockerFlags(t *testing.T) {
	dir := t.TempDir()
	envFile, labelFile := filepath.Join(dir, "env"), filepath.Join(dir, "labels")
	for name, text := range map[string]string{envFile: "# comment\n\n  A=file\nB=file # kept\nDOCKER_TEST_HOST\nDOCKER_TEST_UNSET\n", labelFile: "l1=file\nl2=file\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("DOCKER_TEST_HOST", "host value")
	r := invoke(t, "--net", "none", "--rm", "--init", "-e", "A=flag", "-e", "DOCKER_TEST_UNSET2", "--env-file", envFile, "-w", "/tmp/../usr", "-u", "7:8",
		"--sysctl", "net.ipv4.ip_forward=1", "--cap-add", "NET_ADMIN", "--stop-signal", "SIGQUIT", "--cidfile", "id", "-l", "l2=flag", "--label", "l3",
		"--label-file", labelFile, "--log-driver", "none", "--read-only", "cmd")
	if r.config == nil {
		t.Fatal(r.errOut)
	}
	c := *r.config
	for _, f := range []struct{ name, got, want string }{
		{"process", fmt.Sprint(c.Dir, c.User, c.UserNS, c.StopSignal, c.IDFile, c.ReadOnly), "/usr 7:8SIGQUIT id true"},
		{"network", fmt.Sprint(c.Network, c.Sysctls, c.CapAdd), "none [net.ipv4.ip_forward=1] [NET_ADMIN]"},
		{"labels", fmt.Sprint(c.Labels), "map[l1:file l2:flag l3:]"},
	} {
		if strings.Join(strings.Fields(f.got), " ") != strings.Join(strings.Fields(f.want), " ") && strings.ReplaceAll(f.got, " ", "") != strings.ReplaceAll(f.want, " ", "") {
			t.Errorf("%s: %s, want %s", f.name, f.got, f.want)
		}
	}
	for _, want := range []string{"A=flag", "B=file # kept", "DOCKER_TEST_HOST=host value"} {
		if n := len(slices.DeleteFunc(slices.Clone(c.Env), func(v string) bool { return v != want })); n != 1 {
			t.Errorf("%s is %d times in the environment", want, n)
		}
	}
	for _, v := range c.Env {
		if strings.HasPrefix(v, "DOCKER_TEST_UNSET") || strings.HasPrefix(v, "A=file") {
			t.Errorf("in the environment: %s", v)
		}
	}
}

func TestUserLeavesTheMapOpen(t *testing.T) {
	if c := invoke(t, "-u", "0", "--userns", "auto", "x").config; c.UserNS != "auto" {
		t.Error(c.UserNS)
	}
}

// TestPIDMode: the mode may follow as a word of its own, which only host, private and container:NAME are.
func TestPIDMode(t *testing.T) {
	for _, c := range []struct {
		args    string
		private bool
		argv    string
	}{
		{"--pid host cmd", false, "[cmd]"},
		{"--pid private cmd", true, "[cmd]"},
		{"--pid=host cmd", false, "[cmd]"},
		{"--pid cmd host", true, "[cmd host]"},
		{"--pid -- host", true, "[host]"},
		{"--name --pid --pid host cmd", false, "[cmd]"},
		{"-p 1:1 --pid host cmd --pid host", false, "[cmd --pid host]"},
		{"-Pd --pid host cmd", false, ""},
		{"-eA=1 -h pid --pid host cmd", false, "[cmd]"},
		{"cmd --pid host", false, "[cmd --pid host]"},
	} {
		var o options
		cmd := newCommand(&o)
		args := joinPID(cmd.Flags(), strings.Fields(c.args))
		if err := cmd.ParseFlags(args); err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		if got := fmt.Sprint(cmd.Flags().Args()); o.config.PIDNamespace != c.private || c.argv != "" && got != c.argv {
			t.Errorf("%s: private %v, command %s", c.args, o.config.PIDNamespace, got)
		}
	}
}

func TestExpose(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--expose 80 x", "[]"},
		{"-P --expose 80 --expose 53-54/udp x", "[80/tcp 53/udp 54/udp]"},
		{"-P -p 8080:80 --expose 80-81 --expose 81 x", "[8080:80 81/tcp]"},
	} {
		r := invoke(t, strings.Fields(c.args)...)
		if r.config == nil || fmt.Sprint(r.config.Publish) != c.want {
			t.Errorf("%s: %+v", c.args, r)
		}
	}
}

func TestStreams(t *testing.T) {
	if c := invoke(t, "-i=false", "x").config; c.Stdin != nil {
		t.Error("-i=false leaves standard input")
	}
	if c := invoke(t, "-t", "x").config; !c.TTY || c.Stdin != nil || c.JobControl {
		t.Errorf("-t without a terminal: %v %v %v", c.TTY, c.Stdin, c.JobControl)
	}
	if c := invoke(t, "x").config; c.Stdin == nil || c.TTY || !c.JobControl {
		t.Error("without flags the command has our standard input")
	}
}

func TestImageHint(t *testing.T) {
	for name, image := range map[string]bool{"alpine": true, "nginx:1.27": true, "docker.io/library/redis": true, "localhost:5000/a/b": true,
		"pythn": false, "./run": false, "/bin/nope": false, "Foo:1": false} {
		if got := imageHint(withName(127, os.ErrNotExist, []string{name})) != ""; got != image {
			t.Errorf("%s: %v", name, got)
		}
	}
	if imageHint(withName(126, os.ErrPermission, []string{"nginx"})) != "" {
		t.Error("a hint for a command that exists")
	}
}

func TestHelpIsGrouped(t *testing.T) {
	r := invoke(t, "--help")
	last := -1
	for _, group := range groups {
		i := strings.Index(r.out, "\n"+group+":\n")
		if i < last || i < 0 {
			t.Errorf("%s is at %d", group, i)
		}
		last = i
	}
	if strings.Contains(r.out, "--volume") || strings.Contains(r.out, "--memory") {
		t.Error("the help text lists refused flags")
	}
	var o options
	for _, flag := range []string{"publish", "env", "tty", "help", "version", "name", "datapath"} {
		if f := newCommand(&o).Flags().Lookup(flag); f == nil || len(f.Annotations[groupKey]) != 1 {
			t.Errorf("--%s is in no group", flag)
		}
	}
}
