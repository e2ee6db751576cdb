package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/helper"
	"rootlessnet/internal/signals"
	"rootlessnet/internal/systemd"
)

// Environment variables of the background process: the descriptor number of the pipe for messages (the pipe for the id has the next
// number), and the number of listening sockets that it inherits.
const (
	detachedVar  = "ROOTLESS_RUN_DETACHED"
	listenersVar = "ROOTLESS_RUN_LISTENERS"
)

// firstFD is the first descriptor that a process inherits after the standard streams (sd_listen_fds(3), exec.Cmd.ExtraFiles).
const firstFD = systemd.FirstFD

// detached is the background process's end of the two pipes.
type detached struct {
	messages io.Writer
	text, id *os.File
	once     sync.Once
}

// detachedChild returns nil if this process is not the background process.
func detachedChild() *detached {
	fd, err := strconv.Atoi(os.Getenv(detachedVar))
	if err != nil || fd < firstFD {
		return nil
	}
	os.Unsetenv(detachedVar)
	unix.CloseOnExec(fd)
	unix.CloseOnExec(fd + 1)
	helper.SetName(filepath.Base(os.Args[0]))
	d := &detached{text: os.NewFile(uintptr(fd), "messages"), id: os.NewFile(uintptr(fd+1), "id")}
	d.messages = d.text
	return d
}

// started reports the sandbox's id to the foreground process, which then exits.
func (d *detached) started(id string) {
	d.once.Do(func() {
		d.text.Close()
		io.WriteString(d.id, id)
		d.id.Close()
	})
}

// detach starts this program again in the background with the same arguments, waits until its command has started, and prints the
// id of the sandbox.
func (p program) detach(args []string) (int, error) {
	text, textW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer text.Close()
	defer textW.Close()
	id, idW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer id.Close()
	defer idW.Close()

	listeners := listenFDs()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	for fd := range listeners {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(firstFD+fd), "listener"))
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, textW, idW)
	cmd.Env = append(os.Environ(), detachedVar+"="+strconv.Itoa(firstFD+listeners), listenersVar+"="+strconv.Itoa(listeners))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	interrupt := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) { // the background process ignores it, too
			signal.Notify(interrupt, sig)
		}
	}
	defer signal.Stop(interrupt)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	textW.Close()
	idW.Close()
	quit := make(chan struct{})
	defer close(quit)
	go func() {
		select {
		case sig := <-interrupt:
			cmd.Process.Signal(sig)
		case <-quit:
		}
	}()

	// Both pipes end when the background process closes them, after its command has started or by exiting.
	if _, err := io.Copy(p.stderr, text); err != nil {
		return 0, err
	}
	word, err := io.ReadAll(id)
	if err != nil {
		return 0, err
	}
	if len(word) > 0 {
		fmt.Fprintf(p.stdout, "%s\n", word)
		return 0, cmd.Process.Release()
	}
	return exitCode(cmd.Wait())
}

// exitCode returns the exit code of a background process that started no command. It has reported the reason on the message pipe.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	if exit != nil {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && signals.Terminates(status.Signal()) {
			return rootlessnet.ExitSignalBase + int(status.Signal()), nil
		}
	}
	if err == nil {
		err = errors.New("exited without starting the command or reporting an error")
	}
	return rootlessnet.ExitFailure, fmt.Errorf("background process: %w", err)
}

// listenFDs returns the number of sockets that a service manager passed to this process (sd_listen_fds(3)), or that the foreground
// process passed to the background process.
func listenFDs() int {
	if n, err := strconv.Atoi(os.Getenv(listenersVar)); err == nil {
		return max(n, 0)
	}
	return systemd.ListenFDs()
}

// inheritedListeners returns the sockets that listenFDs counts. The command does not inherit them.
func inheritedListeners() ([]*os.File, error) {
	return systemd.Files(listenFDs())
}

// withoutOurVariables returns env without the variables that are meant for this program and not for the command.
func withoutOurVariables(env []string) []string {
	var kept []string
	for _, v := range env {
		switch name, _, _ := strings.Cut(v, "="); name {
		case detachedVar, listenersVar, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
		default:
			kept = append(kept, v)
		}
	}
	return kept
}
