package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// bins holds rootless-run and rootless-net.
var bins string

// hostResolvConf is what the product reads as the host's /etc/resolv.conf; writing to it changes it.
var hostResolvConf *os.File

// built names the directory of the programs that the first TestMain built and the second has to remove.
const built = "ROOTLESSNET_E2E_BUILT"

func TestMain(m *testing.M) {
	guest.Main()
	if len(os.Args) > 4 && os.Args[1] == onHostFiles {
		os.Exit(fail(enterHostFiles(os.Args[2:])))
	}
	if os.Getenv("ROOTLESSNET_BIN") == "" {
		// Before the network namespace is left, in which modules may still have to be fetched.
		dir, err := build()
		if err != nil {
			os.Exit(fail(err))
		}
		os.Setenv("ROOTLESSNET_BIN", dir)
		os.Setenv(built, dir)
	}
	topo.Enter()
	os.Exit(run(m))
}

func build() (string, error) {
	dir, err := os.MkdirTemp("", "bin")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"cmd/rootless-run", "cmd/rootless-net", "cmd/slirp4netns", "cmd/pasta", "cmd/rootlessport", "examples/embed"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(name)), "../"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			os.RemoveAll(dir)
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
}

func run(m *testing.M) int {
	bins = os.Getenv("ROOTLESSNET_BIN")
	if dir := os.Getenv(built); dir != "" {
		defer os.RemoveAll(dir)
	}
	var err error
	// A resolver in "there", where the tests' DNS server is.
	if hostResolvConf, err = topo.Cover("/etc/resolv.conf", fmt.Appendf(nil, "nameserver %v\n", topo.There4)); err != nil {
		return fail(err)
	}
	defer os.Remove(hostResolvConf.Name())
	return m.Run()
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// long reports whether the long forms of the load tests are enabled.
func long() bool { return os.Getenv("ROOTLESSNET_LONG") == "1" }

// kinds are the links to test: all three where /dev/net/tun can be opened.
func kinds(t *testing.T) []string {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return []string{"tap", "tap-plain", "packet"}
	}
	if os.Getenv("ROOTLESSNET_CI") == "1" && os.Getenv("TUN_MODE") != "0600" {
		t.Fatalf("nothing is skipped in CI, and the TAP links cannot be tested: %v", err)
	}
	t.Logf("ONLY THE PACKET LINK IS TESTED: %v", err)
	return []string{"packet"}
}

// datapaths are those that TCP can take.
var datapaths = []string{"splice", "stack"}

// onEveryLink runs test once for each link kind and datapath, as KIND/DATAPATH.
func onEveryLink(t *testing.T, test func(t *testing.T, l *lab)) {
	for _, kind := range kinds(t) {
		for _, path := range datapaths {
			t.Run(kind+"/"+path, func(t *testing.T) { test(t, newLabOn(t, kind, path)) })
		}
	}
}

// onEveryLinkAtOnce is onEveryLink for tests that mostly wait: all of them at the same time, each with namespaces of its own.
func onEveryLinkAtOnce(t *testing.T, test func(t *testing.T, l *lab)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, kind := range kinds(t) {
		for _, path := range datapaths {
			wg.Go(func() { t.Run(kind+"/"+path, func(t *testing.T) { test(t, newLabOn(t, kind, path)) }) })
		}
	}
}

// onEveryDatapath is for what depends on the datapath and not on the link, which is the default one.
func onEveryDatapath(t *testing.T, test func(t *testing.T, l *lab)) {
	for _, path := range datapaths {
		t.Run(path, func(t *testing.T) { test(t, newLabOn(t, "auto", path)) })
	}
}

// onEveryDatapathAtOnce is onEveryDatapath for tests that mostly wait: both at the same time, each with namespaces of its own.
func onEveryDatapathAtOnce(t *testing.T, test func(t *testing.T, l *lab)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, path := range datapaths {
		wg.Go(func() { t.Run(path, func(t *testing.T) { test(t, newLabOn(t, "auto", path)) }) })
	}
}

func newLabOn(t *testing.T, kind, path string) *lab {
	l := newLab(t)
	l.kind, l.datapath = kind, path
	l.flags = []string{"--link", kind, "--datapath", path}
	return l
}

// eventually waits until ok returns "", and fails with what it returned last.
func eventually(t *testing.T, within time.Duration, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		problem := ok()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", within, problem)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
