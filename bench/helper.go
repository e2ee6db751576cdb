package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind says whose a helper is, for the targets and the chart.
type kind string

const (
	kindNone   kind = "none"   // no helper: the command in the host's own network
	kindKernel kind = "kernel" // docker0's way, which takes root
	kindOurs   kind = "ours"
	kindPeer   kind = "peer"
	kindBuild  kind = "build" // another build of ours, to compare with
)

const (
	noneName   = "none"
	dockerName = "docker0"
	oursName   = "rootless-run"
	stackName  = oursName + "/stack"
	spliceName = oursName + "/splice"
)

// helper is one way to give a command a network.
type helper struct {
	name    string
	kind    kind
	version string
	docker  bool // lives on the ground's second site
	// portsOnly is set where another helper has the same road out and only published ports differ.
	portsOnly bool
	env       []string // to be added
	// wrap returns the command line that runs argv behind the helper with the given MTU; publish, when it is not 0, is
	// a TCP port of the command's that is reached by the same port of the host.
	wrap func(argv []string, mtu, publish int) []string
}

// missing is a helper that was looked for in vain.
type missing struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// finder collects helpers.
type finder struct {
	g       *ground
	flags   []string // further ones of rootless-run
	found   []*helper
	missing []missing
}

func bare(argv []string, _, _ int) []string { return argv }

// all finds every helper of this machine.
func (f *finder) all() {
	f.found = append(f.found, &helper{name: noneName, kind: kindNone, wrap: bare})
	f.docker0()
	f.ours()
	f.builds()
	pastas := f.each("pasta", "passt", f.pasta)
	f.each("slirp4netns", "slirp4netns", f.slirp)
	f.each("rootlesskit", "rootlesskit", func(path, version string) { f.rootlesskit(path, version, pastas) })
}

// choose keeps those that a list of names (comma-separated) asks for. A name may lack the version and what follows it:
// "pasta" is every pasta, "rootless-run" only that.
func choose(all []*helper, names string) ([]*helper, error) {
	if names == "all" {
		return all, nil
	}
	var chosen []*helper
	for _, name := range strings.Split(names, ",") {
		known := false
		for _, h := range all {
			rest, ok := strings.CutPrefix(h.name, name)
			if !ok || rest != "" && rest[0] != '-' && rest[0] != ':' {
				continue
			}
			known = true
			if !slices.Contains(chosen, h) {
				chosen = append(chosen, h)
			}
		}
		if !known {
			return nil, fmt.Errorf("no helper called %q here, only %s", name, strings.Join(namesOf(all), ", "))
		}
	}
	return chosen, nil
}

func namesOf(helpers []*helper) (names []string) {
	for _, h := range helpers {
		names = append(names, h.name)
	}
	return names
}

func (f *finder) docker0() {
	err := f.g.makeDocker()
	if err != nil {
		f.missing = append(f.missing, missing{dockerName, err.Error()})
		return
	}
	f.found = append(f.found, &helper{name: dockerName, kind: kindKernel, docker: true, wrap: bare})
}

// ours finds rootless-run in ROOTLESSNET_BIN, then beside this program, then in PATH.
func (f *finder) ours() {
	path, err := findOwn(oursName)
	if err != nil {
		f.missing = append(f.missing, missing{oursName, err.Error()})
		return
	}
	version := firstLine(path, "--version")
	help, _ := quick(path, "--help")
	add := func(name string, flags ...string) { f.build(name, kindOurs, path, version, flags...) }
	add(oursName)
	for _, name := range []string{stackName, spliceName} {
		if !strings.Contains(help, "--datapath") {
			f.missing = append(f.missing, missing{name, "this rootless-run has no --datapath"})
			continue
		}
		add(name, "--datapath", strings.TrimPrefix(name, oursName+"/"))
	}
}

// build adds one build of rootless-run with the given flags.
func (f *finder) build(name string, k kind, path, version string, flags ...string) {
	flags = append(slices.Clone(f.flags), flags...)
	f.found = append(f.found, &helper{name: name, kind: k, version: version,
		wrap: func(argv []string, mtu, publish int) []string {
			line := append([]string{path, "--mtu", strconv.Itoa(mtu)}, flags...)
			if publish != 0 {
				line = append(line, "-p", fmt.Sprintf("%d:%d", publish, publish))
			}
			return append(append(line, "--"), argv...)
		}})
}

// builds adds the other builds of rootless-run in ROOTLESSNET_PEERS, files called rootless-run-NAME: a change is compared with
// what was there before it, in one run.
func (f *finder) builds() {
	paths, _ := filepath.Glob(filepath.Join(os.Getenv("ROOTLESSNET_PEERS"), oursName+"-*"))
	for _, path := range paths {
		if abs, err := filepath.Abs(path); err == nil {
			f.build(filepath.Base(path), kindBuild, abs, firstLine(abs, "--version"))
		}
	}
}

func findOwn(name string) (string, error) {
	places := []string{os.Getenv("ROOTLESSNET_BIN")}
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Dir(self))
	}
	for _, dir := range places {
		if dir == "" {
			continue
		}
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return exec.LookPath(name)
}

// each calls add for every program of that name: the one in PATH, and in ROOTLESSNET_PEERS those that are called so
// or begin so and a "-", such as rootlesskit-3.0.1. It returns the paths.
func (f *finder) each(name, pkg string, add func(path, version string)) []string {
	var paths []string
	if path, err := exec.LookPath(name); err == nil {
		paths = append(paths, path)
	}
	if dir := os.Getenv("ROOTLESSNET_PEERS"); dir != "" {
		dir, _ = filepath.Abs(dir)
		more, _ := filepath.Glob(filepath.Join(dir, name+"-*"))
		for _, path := range append(more, filepath.Join(dir, name)) {
			// pasta finds its variant for the processor, pasta-VERSION.avx2, by itself.
			if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && filepath.Ext(path) != ".avx2" {
				paths = append(paths, path)
			}
		}
	}
	if len(paths) == 0 {
		f.missing = append(f.missing, missing{name, "neither in PATH nor in $ROOTLESSNET_PEERS; `make peers` gets it"})
	}
	for _, path := range paths {
		version := versionIn(firstLine(path, "--version"))
		if version == "" {
			version = packageVersion(pkg)
		}
		add(path, version)
	}
	return paths
}

// versionIn is the first word of a line that has a digit, without a commit after it.
func versionIn(line string) string {
	for _, word := range strings.Fields(line) {
		if strings.ContainsAny(word, "0123456789") && !strings.HasSuffix(word, "netns") {
			if len(word) > 10 && strings.Count(word, "_") == 2 { // pasta's 2024_12_11.09478d5
				word = word[:10]
			}
			return word
		}
	}
	return ""
}

// packageVersion asks Debian, for a program that does not know its own: "0.0~git20230309.7c7625d-1" is 20230309.
func packageVersion(pkg string) string {
	version := firstLine("dpkg-query", "-W", "-f", "${Version}", pkg)
	if _, git, ok := strings.Cut(version, "~git"); ok {
		version, _, _ = strings.Cut(git, ".")
	}
	return version
}

func firstLine(argv ...string) string {
	out, _ := quick(argv...)
	line, _, _ := strings.Cut(out, "\n")
	return strings.TrimSpace(line)
}

// quick runs something that answers at once, with the host's network but no part in the measurement.
func quick(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}
