package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Helper is one way to give a command a network.
type Helper interface {
	Name() string
	// Wrap returns the command line that runs argv behind the helper with the given MTU; publish, when it is not 0,
	// is a port of the command's that is reached by the same port of the host.
	Wrap(argv []string, mtu, publish int) []string
}

// none is no helper: the command in the host's own network.
type none struct{}

func (none) Name() string                          { return "none" }
func (none) Wrap(argv []string, _, _ int) []string { return argv }

// run is rootless-run, with further flags of the user's.
type run struct {
	path  string
	flags []string
}

func (run) Name() string { return "rootless-run" }

func (r run) Wrap(argv []string, mtu, publish int) []string {
	line := append([]string{r.path, "--mtu", strconv.Itoa(mtu)}, r.flags...)
	if publish != 0 {
		line = append(line, "-p", fmt.Sprintf("%d:%d", publish, publish))
	}
	return append(append(line, "--"), argv...)
}

// pasta is passt's pasta in its command form. Without --no-map-gw the gateway, which is our server, would be the host.
type pasta struct{ path string }

func (pasta) Name() string { return "pasta" }

func (p pasta) Wrap(argv []string, mtu, publish int) []string {
	line := []string{p.path, "--config-net", "--no-map-gw", "-q", "-f", "-m", strconv.Itoa(mtu), "-u", "none", "-T", "none", "-U", "none", "-t"}
	if publish != 0 {
		line = append(line, strconv.Itoa(publish))
	} else {
		line = append(line, "none")
	}
	return append(append(line, "--"), argv...)
}

// findHelpers turns the names of -helpers into helpers. rootless-run is looked for in ROOTLESSNET_BIN, then beside
// this program, then in PATH.
func findHelpers(names string, flags []string) ([]Helper, error) {
	var found []Helper
	for _, name := range strings.Split(names, ",") {
		switch name {
		case "none":
			found = append(found, none{})
		case "rootless-run":
			path, err := findOwn(name)
			if err != nil {
				return nil, err
			}
			found = append(found, run{path: path, flags: flags})
		case "pasta":
			path, err := exec.LookPath(name)
			if err != nil {
				return nil, err
			}
			found = append(found, pasta{path: path})
		default:
			return nil, fmt.Errorf("no helper called %q", name)
		}
	}
	return found, nil
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
