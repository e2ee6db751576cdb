package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/helper"
	"rootlessnet/internal/pasta"
)

// commandVar marks the process that stands in the new namespaces until it becomes the command, and has the name that its
// host gets.
const commandVar = "ROOTLESSNET_PASTA_COMMAND"

// goFD is where that process is told to go on.
const goFD = 3

// maxHostname is __NEW_UTS_LEN (include/uapi/linux/utsname.h).
const maxHostname = 64

// Exit statuses of a command that could not be executed, as a shell has them.
const (
	exitSignalBase = 128
)

// runCommand runs the command in namespaces of its own, connected, and returns its status.
func runCommand(o *pasta.Options) (code int, err error) {
	argv := o.Command
	if len(argv) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		argv = []string{shell}
	}
	if _, err := helper.Adopt(); err != nil { // what our caller left open is not the command's
		return exitFailure, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return exitFailure, err
	}
	defer w.Close()
	// The death signal belongs to the thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{r}
	hostname := o.Hostname
	if hostname == "" {
		if own, err := os.Hostname(); err == nil {
			hostname = "pasta-" + own
		}
	}
	cmd.Env = append(os.Environ(), commandVar+"="+hostname)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	// What the terminal sends reaches the command by itself; what is sent to us alone is passed on.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT, syscall.SIGHUP)
	err = cmd.Start()
	r.Close()
	if err != nil {
		return exitFailure, fmt.Errorf("make the command's namespaces: %w", err)
	}
	b, err := connect(o, rootlessnet.Target{PID: cmd.Process.Pid}, os.Stderr)
	if err == nil {
		defer b.close()
		err = writePID(o.PIDFile, os.Getpid())
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return exitFailure, err
	}
	if _, err := w.Write([]byte{1}); err != nil {
		_ = cmd.Process.Kill()
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				if s != syscall.SIGINT && s != syscall.SIGQUIT {
					_ = cmd.Process.Signal(s)
				}
			case <-done:
				return
			}
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return exitFailure, err
	}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		return exitSignalBase + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// commandChild waits, in the new namespaces, until they are connected, and becomes the command. It returns at once in
// any other process.
func commandChild() {
	hostname, marked := os.LookupEnv(commandVar)
	if !marked {
		return
	}
	os.Unsetenv(commandVar)
	unix.CloseOnExec(goFD)
	f := os.NewFile(goFD, "go")
	if _, err := io.ReadFull(f, make([]byte, 1)); err != nil {
		os.Exit(exitFailure) // the other process has said why
	}
	// A /proc of the new pid namespace; where the old one is covered in parts (containers), it has to do.
	_ = unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, "")
	// What the command may do without: a name that tells a shell's prompt from the host's, and ping.
	if len(hostname) > maxHostname {
		hostname = hostname[:maxHostname]
	}
	if hostname != "" {
		_ = unix.Sethostname([]byte(hostname))
	}
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0)
	path, err := exec.LookPath(os.Args[1])
	if err == nil {
		err = syscall.Exec(path, os.Args[1:], os.Environ())
	}
	// The original's words, and status.
	if errors.Is(err, exec.ErrNotFound) {
		err = syscall.ENOENT
	}
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	fmt.Fprintf(os.Stderr, "Failed to start command or shell: %s\n", errnoText(err))
	os.Exit(exitFailure)
}

// errnoText is an error as strerror(3) has it, with a capital letter.
func errnoText(err error) string {
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}
