package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// slirp4netns connects a namespace that another program has created. `bench slirp` is that program: it creates the namespaces, starts
// slirp4netns on them, publishes the port through its API socket and then runs the command.

const slirpGuest = "10.0.2.100" // slirp4netns(1)

// runSlirp runs argv in a namespace that the slirp4netns at path connects, and returns the exit status of argv.
func runSlirp(path, mtu, publish string, argv []string) (code int, err error) {
	gate, release, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer release.Close()
	// The kernel sends the parent-death signal when the thread that forked ends (prctl(2), PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, append([]string{"await"}, argv...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{gate}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err = cmd.Start()
	gate.Close()
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	stop, err := startSlirp(path, mtu, publish, cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	defer stop()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	if _, err := release.Write([]byte("x")); err != nil {
		return 0, err
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

// startSlirp starts slirp4netns on the namespaces of pid and waits until it is ready.
func startSlirp(path, mtu, publish string, pid int) (stop func(), err error) {
	dir, err := os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), "s")
	if err != nil {
		return nil, err
	}
	ready, notify, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer ready.Close()
	api := filepath.Join(dir, "api")
	cmd := exec.Command(path, "-c", "-r", "3", "-m", mtu, "--disable-host-loopback", "-a", api, strconv.Itoa(pid), "tap0")
	cmd.ExtraFiles = []*os.File{notify}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	notify.Close()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		os.RemoveAll(dir)
	}
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		stop()
		return nil, fmt.Errorf("slirp4netns did not become ready: %w", err)
	}
	if publish != "0" {
		if err := forwardBySlirp(api, publish); err != nil {
			stop()
			return nil, err
		}
	}
	return stop, nil
}

// forwardBySlirp publishes a TCP port as the same port of the host.
func forwardBySlirp(api, port string) error {
	c, err := net.DialTimeout("unix", api, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0",`+
		`"host_port":%s,"guest_addr":%q,"guest_port":%s}}`, port, slirpGuest, port); err != nil {
		return err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	var answer struct {
		Error *struct{ Desc string }
	}
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return fmt.Errorf("slirp4netns's answer: %w", err)
	}
	if answer.Error != nil {
		return fmt.Errorf("slirp4netns: publish %s: %s", port, answer.Error.Desc)
	}
	return nil
}

// await waits for a byte on descriptor 3 and then executes argv. It returns an error if the descriptor ends first.
func await(argv []string) error {
	gate := os.NewFile(3, "gate")
	if _, err := io.ReadFull(gate, make([]byte, 1)); err != nil {
		return errors.New("the network was not set up")
	}
	gate.Close()
	return syscall.Exec(argv[0], argv, os.Environ())
}
