package api

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"rootlessnet/internal/nettest/skip"
)

func TestRefusedPeer(t *testing.T) {
	_, c := serve(t, newFake(), "", ServerOptions{checkPeer: func(*net.UnixConn) error { return errors.New("another user") }})
	var e *Error
	if _, err := c.Inspect(t.Context()); !errors.As(err, &e) || e.Status != 403 || e.Message != "permission denied: another user" {
		t.Error(err)
	}
	if _, err := c.Lease(t.Context(), LeaseExec); !errors.As(err, &e) || e.Status != 403 {
		t.Error(err)
	}
}

// TestPeerInASandbox connects as a command inside a sandbox would: with the same uid of the host, from another user namespace.
func TestPeerInASandbox(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "api.sock")
	serve(t, newFake(), path, ServerOptions{})
	inside := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	keepID := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}}
	for name, attr := range map[string]*syscall.SysProcAttr{
		"user namespace":         inside,
		"user namespace, hidden": inside,
		"same ids":               keepID,
		"same ids, hidden":       keepID,
		"other user":             {Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
	} {
		t.Run(name, func(t *testing.T) {
			self := "/proc/self/exe"
			if attr.Credential != nil {
				if os.Getuid() != 0 {
					t.Skip("SKIPPED: becoming another user needs root; `make test` as root runs it (test-root)")
				}
				// The other user must be able to reach the socket, or else the file system refuses it and not the server.
				openUp(t, dir, path)
				self = copySelf(t, dir)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), "API_TEST_PEER="+path)
			if strings.HasSuffix(name, ", hidden") {
				cmd.Env = append(cmd.Env, "API_TEST_UNDUMPABLE=1")
			}
			cmd.SysProcAttr = attr
			out, err := cmd.CombinedOutput()
			if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENOSPC) {
				if os.Getenv("ROOTLESSNET_CI") == "1" {
					t.Fatal(err)
				}
				skip.Missing(t, "cannot make a user namespace: %v", err)
			}
			if err != nil || !strings.HasPrefix(string(out), "permission denied: ") {
				t.Errorf("%q %v", out, err)
			}
		})
	}
}

// TestUndumpablePeer connects as a program that is not dumpable, such as a supervisor that has dropped its capabilities.
func TestUndumpablePeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	serve(t, newFake(), path, ServerOptions{})
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "API_TEST_PEER="+path, "API_TEST_UNDUMPABLE=1")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "<nil>" {
		t.Errorf("%s %v", out, err)
	}
}

// openUp lets other users connect to the socket.
func openUp(t *testing.T, dir, socket string) {
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
}

// copySelf copies the test binary to where another user can execute it.
func copySelf(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "self")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestServerInAUserNamespace: a helper that runs in a user namespace admits its user from the initial one.
func TestServerInAUserNamespace(t *testing.T) {
	if text, err := os.ReadFile("/proc/self/uid_map"); err != nil || !mapsAll(text) {
		skip.Missing(t, "not in the initial user namespace")
	}
	path := filepath.Join(t.TempDir(), "api.sock")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "API_TEST_SERVER="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		skip.Missing(t, "cannot make a user namespace: %v", err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("the server printed %q, %v", line, err)
	}
	c := NewClient(path)
	defer c.Close()
	if _, err := c.Inspect(t.Context()); err != nil {
		t.Error(err)
	}
}
