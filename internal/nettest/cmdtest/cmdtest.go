package cmdtest

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asCommand marks, in the environment, the process that is the command.
const asCommand = "ROOTLESSNET_TEST_AS_COMMAND"

// patience bounds what the command does at once unless something is wrong.
const patience = 10 * time.Second

// The descriptors of a started command.
const (
	ExitFD  = 3 // the command ends when the other end is closed
	ReadyFD = 4 // the command writes "1" and closes it when it is ready
)

// Main runs the command and exits when this process was started by Start; otherwise it returns.
func Main(main func()) {
	if os.Getenv(asCommand) == "" {
		return
	}
	os.Unsetenv(asCommand)
	main()
	os.Exit(0)
}

// Process is a started command.
type Process struct {
	t              testing.TB
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	exit, ready    *os.File // our ends of the descriptors
	ended          chan struct{}
}

// Start starts the command under that name, with stdin as its standard input. It ends with the test.
func Start(t testing.TB, name, stdin string, args ...string) *Process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{t: t, cmd: exec.Command(exe, args...), ended: make(chan struct{})}
	p.cmd.Args[0] = name
	p.cmd.Env = append(os.Environ(), asCommand+"=1")
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = strings.NewReader(stdin), &p.stdout, &p.stderr
	exitR, exit, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ready, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.exit, p.ready = exit, ready
	p.cmd.ExtraFiles = []*os.File{exitR, readyW}
	err = p.cmd.Start()
	exitR.Close()
	readyW.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		exit.Close()
		ready.Close()
	})
	return p
}

// WaitReady returns what the command wrote to the ready descriptor until it closed it: "1" when it is ready, "" when it
// ended before.
func (p *Process) WaitReady() string {
	p.t.Helper()
	_ = p.ready.SetReadDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(p.ready)
	if err != nil {
		p.t.Fatalf("the ready descriptor: %v", err)
	}
	return string(text)
}

// CloseExit closes our end of the exit descriptor.
func (p *Process) CloseExit() { p.exit.Close() }

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// Running reports whether the command has not ended after a while.
func (p *Process) Running(while time.Duration) bool {
	select {
	case <-p.ended:
		return false
	case <-time.After(while):
		return true
	}
}

// Result is what an ended command left.
type Result struct {
	Code           int // the exit status, -1 after a signal
	Stdout, Stderr string
}

// Wait waits for the end.
func (p *Process) Wait() Result {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("%v did not end within %v", p.cmd.Args, patience)
	}
	return Result{p.cmd.ProcessState.ExitCode(), p.stdout.String(), p.stderr.String()}
}
