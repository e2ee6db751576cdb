package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"rootlessnet"
)

// networkMode is the one --network. A second, different one contradicts it.
type networkMode struct {
	mode *string
	set  bool
}

func (v *networkMode) Set(s string) error {
	if v.set && *v.mode != s {
		return fmt.Errorf("conflicting options: network %s and network %s", *v.mode, s)
	}
	*v.mode, v.set = s, true
	return nil
}
func (v *networkMode) String() string {
	if v.mode == nil {
		return ""
	}
	return *v.mode
}
func (v *networkMode) Type() string { return "mode" }

// pidPrivate is the value of --pid without one.
const pidPrivate = "private"

// pidMode is Docker's --pid. Without the flag the command sees the processes of this host.
type pidMode struct{ private *bool }

func (v *pidMode) Set(s string) error {
	switch s {
	case pidPrivate, "true":
		*v.private = true
	case "host", "false":
		*v.private = false
	default:
		if strings.HasPrefix(s, rootlessnet.ContainerPrefix) {
			return &refusal{"--pid container:NAME", "rootless-net exec NAME runs a command in all namespaces of a sandbox"}
		}
		return errors.New("invalid PID mode")
	}
	return nil
}
func (v *pidMode) String() string { return "" }
func (v *pidMode) Type() string   { return "mode" }

// joinPID writes "--pid MODE" as "--pid=MODE". The flag has an optional value, which pflag reads only after an equals sign; the words
// that follow as the first of a command are not modes.
func joinPID(f *pflag.FlagSet, args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' || arg == "--" {
			return append(out, args[i:]...)
		}
		out = append(out, arg)
		if arg == "--pid" {
			if i+1 < len(args) && (args[i+1] == "host" || args[i+1] == pidPrivate || strings.HasPrefix(args[i+1], rootlessnet.ContainerPrefix)) {
				i++
				out[len(out)-1] += "=" + args[i]
			}
			continue
		}
		if takesNext(f, arg) && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

// takesNext reports whether the value of a flag, or of the last one of a group of shorthands, is the next argument.
func takesNext(f *pflag.FlagSet, arg string) bool {
	if name, ok := strings.CutPrefix(arg, "--"); ok {
		flag := f.Lookup(name)
		return flag != nil && flag.NoOptDefVal == ""
	}
	for i := 1; i < len(arg); i++ {
		flag := f.ShorthandLookup(arg[i : i+1])
		if flag == nil {
			return false
		}
		if flag.NoOptDefVal == "" {
			return i == len(arg)-1
		}
	}
	return false
}

// exposed are ports that -P publishes from the start.
type exposed struct{ specs []string }

func (v *exposed) Set(s string) error {
	if strings.Contains(s, ":") {
		return fmt.Errorf("invalid port format for --expose: %s", s)
	}
	if _, err := rootlessnet.ParsePortSpec(s); err != nil {
		return fmt.Errorf("invalid range format for --expose: %s, error: %w", s, err)
	}
	v.specs = append(v.specs, s)
	return nil
}
func (v *exposed) String() string { return strings.Join(v.specs, " ") }
func (v *exposed) Type() string   { return "port" }

// without are specs for the exposed ports that published does not have.
func (v *exposed) without(published []string) (specs []string) {
	type guest struct {
		proto string
		port  uint16
	}
	have := map[guest]bool{}
	each := func(list []string, f func(rootlessnet.PortMapping)) {
		for _, spec := range list {
			mappings, _ := rootlessnet.ParsePortSpec(spec) // was read before, by Set
			for _, m := range mappings {
				f(m)
			}
		}
	}
	each(published, func(m rootlessnet.PortMapping) { have[guest{m.Proto, m.GuestPort}] = true })
	each(v.specs, func(m rootlessnet.PortMapping) {
		if g := (guest{m.Proto, m.GuestPort}); !have[g] {
			have[g] = true
			specs = append(specs, strconv.Itoa(int(m.GuestPort))+"/"+m.Proto)
		}
	})
	return specs
}

// sysctls collects kernel parameters, see rootlessnet.Config.
type sysctls struct{ list *[]string }

func (v *sysctls) Set(s string) error {
	if err := rootlessnet.CheckSysctl(s); err != nil {
		return err
	}
	*v.list = append(*v.list, s)
	return nil
}
func (v *sysctls) String() string { return "" }
func (v *sysctls) Type() string   { return "name=value" }

// logDriver says whether the output of a detached command is kept.
type logDriver struct{ name string }

func (v *logDriver) Set(s string) error {
	switch s {
	case "none", "local", "json-file":
		v.name = s
		return nil
	}
	return &refusal{"--log-driver " + s, "the output is kept in a file (local) or not (none); pipe it to another program to send it elsewhere"}
}
func (v *logDriver) String() string {
	if v.name == "" {
		return "local"
	}
	return v.name
}
func (v *logDriver) Type() string { return "driver" }
func (v *logDriver) keep() bool   { return v.name != "none" }

// environment is what -e and --env-file add to the caller's variables: those of the files first.
type environment struct{ files, list []string }

func (v *environment) Set(s string) error {
	if name, _, _ := strings.Cut(s, "="); name == "" {
		return fmt.Errorf("invalid environment variable: %s", s)
	}
	v.list = append(v.list, s)
	return nil
}
func (v *environment) String() string { return "" }
func (v *environment) Type() string   { return "variable" }

type envFiles struct{ env *environment }

func (v *envFiles) Set(s string) error { v.env.files = append(v.env.files, s); return nil }
func (v *envFiles) String() string     { return "" }
func (v *envFiles) Type() string       { return "file" }

// apply returns base with the variables set. A variable without a value is the caller's, and is left out if that is not set.
func (v *environment) apply(base []string) ([]string, error) {
	var add []string
	for _, file := range v.files {
		lines, err := readLines(file)
		if err != nil {
			return nil, err
		}
		add = append(add, lines...)
	}
	names := map[string]int{}
	for i, variable := range base {
		name, _, _ := strings.Cut(variable, "=")
		names[name] = i
	}
	for _, variable := range append(add, v.list...) {
		name, _, hasValue := strings.Cut(variable, "=")
		if !hasValue {
			value, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			variable += "=" + value
		}
		if i, ok := names[name]; ok {
			base[i] = variable
			continue
		}
		names[name] = len(base)
		base = append(base, variable)
	}
	return base, nil
}

// readLines reads a file of variables or labels as Docker does: a line each, blanks before it do not count, and # begins a comment.
func readLines(file string) (lines []string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	scanner := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))
	scanner.Buffer(nil, len(text)+1)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimLeftFunc(scanner.Text(), unicode.IsSpace)
		name, _, _ := strings.Cut(line, "=")
		switch {
		case !utf8.ValidString(line):
			return nil, fmt.Errorf("invalid utf8 bytes at line %d: %s", n, file)
		case line == "" || line[0] == '#':
		case name == "":
			return nil, fmt.Errorf("no variable name on line '%s'", line)
		case strings.ContainsFunc(name, unicode.IsSpace):
			return nil, fmt.Errorf("variable '%s' contains whitespaces", name)
		default:
			lines = append(lines, line)
		}
	}
	return lines, scanner.Err()
}

// labels collects labels, those of files first.
type labels struct{ files, list []string }

func (v *labels) Set(s string) error {
	switch name, _, _ := strings.Cut(s, "="); {
	case strings.TrimSpace(name) == "":
		return fmt.Errorf("invalid label '%s': empty name", s)
	case strings.ContainsFunc(strings.TrimLeft(name, " "), unicode.IsSpace):
		return fmt.Errorf("label '%s' contains whitespaces", name)
	}
	v.list = append(v.list, s)
	return nil
}
func (v *labels) String() string { return "" }
func (v *labels) Type() string   { return "label" }

type labelFiles struct{ labels *labels }

func (v *labelFiles) Set(s string) error { v.labels.files = append(v.labels.files, s); return nil }
func (v *labelFiles) String() string     { return "" }
func (v *labelFiles) Type() string       { return "file" }

// all returns the labels with their values; nil without any.
func (v *labels) all() (map[string]string, error) {
	var lines []string
	for _, file := range v.files {
		l, err := readLines(file)
		if err != nil {
			return nil, err
		}
		lines = append(lines, l...)
	}
	var all map[string]string
	for _, label := range append(lines, v.list...) {
		if all == nil {
			all = map[string]string{}
		}
		name, value, _ := strings.Cut(label, "=")
		all[name] = value
	}
	return all, nil
}

// workdir makes the path of --workdir absolute: a command that joins another sandbox does not start in the caller's directory.
func workdir(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	return filepath.Abs(dir)
}
