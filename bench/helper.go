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

// kind classifies helpers for the targets and the chart.
type kind string

const (
	kindNone   kind = "none"   // no helper: the command runs in the host's network
	kindKernel kind = "kernel" // docker0, which requires root
	kindOurs   kind = "ours"
	kindPeer   kind = "peer"
	kindBuild  kind = "build" // another build of rootless-run
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
	docker  bool // measured on the site for docker0
	// portsOnly is set if the helper differs from another one only in how it publishes ports.
	portsOnly bool
	env       []string // added to the environment
	// wrap returns the command line that runs argv with the helper and the given MTU. publish, if not 0, is a TCP port of the command
	// to publish as the same port of the host.
	wrap func(argv []string, mtu, publish int) []string
}

// missing is a helper that was not found.
type missing struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// finder collects helpers.
type finder struct {
	tb      *testbed
	flags   []string // additional flags of rootless-run
	found   []*helper
	missing []missing
}

func bare(argv []string, _, _ int) []string { return argv }

// all finds all helpers of this machine.
func (f *finder) all() {
	f.found = append(f.found, &helper{name: noneName, kind: kindNone, wrap: bare})
	f.docker0()
	f.ours()
	f.builds()
	pastas := f.each("pasta", "passt", f.pasta)
	f.each("slirp4netns", "slirp4netns", f.slirp)
	f.each("rootlesskit", "rootlesskit", func(path, version string) { f.rootlesskit(path, version, pastas) })
}

// choose returns the helpers in a comma-separated list of names. A name without the version and what follows it selects all versions:
// "pasta" selects every pasta.
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
	err := f.tb.makeDocker()
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

// builds adds other builds of rootless-run, the files rootless-run-NAME in ROOTLESSNET_PEERS, so that a change can be compared with the
// state before it in one run.
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

// each calls add for every program of that name and returns their paths: the program in PATH, and those in ROOTLESSNET_PEERS whose name
// is name, or begins with name and "-", such as rootlesskit-3.0.1.
func (f *finder) each(name, pkg string, add func(path, version string)) []string {
	var paths []string
	if path, err := exec.LookPath(name); err == nil {
		paths = append(paths, path)
	}
	if dir := os.Getenv("ROOTLESSNET_PEERS"); dir != "" {
		dir, _ = filepath.Abs(dir)
		more, _ := filepath.Glob(filepath.Join(dir, name+"-*"))
		for _, path := range append(more, filepath.Join(dir, name)) {
			// pasta-VERSION.avx2 is executed by pasta-VERSION if the processor has AVX2.
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

// versionIn returns the first word of a line that has a digit, without the commit of pasta's versions.
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

// packageVersion returns the version of a Debian package, for a program that does not print its own. For
// "0.0~git20230309.7c7625d-1" that is 20230309.
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

// quick runs a command that ends at once, outside of the measurements, and returns its output.
func quick(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}
