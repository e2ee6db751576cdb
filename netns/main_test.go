package netns

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/nettest/skip"
)

// childEnv names the test for which the test binary was started in a namespace of its own.
const childEnv = "NETNS_TEST_CHILD"

// inNamespace reports whether the process is in a network namespace made for the calling test, with all capabilities over it.
// Otherwise it runs that test, and no other, in a child process with a new user and a new network namespace, reports the
// child's result as the test's own, and returns false.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		nettest.CheckLeaks(t)
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Fatalf("in a namespace of its own:\n%s", out)
	case err != nil: // it was not started
		skip.Missing(t, "user namespaces: %v", err)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skipf("in a namespace of its own:\n%s", out)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()+" "):
		t.Fatalf("the child did not run the test:\n%s", out)
	}
	return false
}

// testLink is an uplink with everything that can be set, of the kind that works on every machine.
func testLink(t *testing.T) *Link {
	t.Helper()
	l, err := Link{Kind: KindPacket, MAC: []byte{2, 0, 0, 0, 0, 9}, MTU: 1500, GatewayMAC: []byte{2, 0, 0, 0, 0, 1},
		Addrs:    []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("fd00::100/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")}}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return &l
}

// setUp configures the namespace of the process, with the uplink l unless it is nil.
func setUp(t *testing.T, l *Link) {
	t.Helper()
	dev, err := SetUp(l, GIDRange{Count: 1}, warnLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if dev != nil {
		t.Cleanup(func() { dev.File.Close() })
	}
}

// warnLog writes warnings into the test's log.
func warnLog(t *testing.T) Warn {
	return func(format string, args ...any) { t.Logf("warning: "+format, args...) }
}
