package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/helper"
	"rootlessnet/internal/pasta"
)

// commandVar is set in the environment of the process that waits in the new namespaces and then executes the command. Its value
// is the host name for the new UTS namespace.
const commandVar = "ROOTLESSNET_PASTA_COMMAND"

// goFD is the descriptor of the pipe from which that process reads one byte once the namespaces are connected. It is the first
// of exec.Cmd.ExtraFiles.
const goFD = 3

// maxHostname is __NEW_UTS_LEN (include/uapi/linux/utsname.h).
const maxHostname = 64

// exitSignalBase is added to the number of the signal that ended the command, as shells do.
const exitSignalBase = 128

// runCommand connects new namespaces, runs the command in them and returns its exit status.
func runCommand(o *pasta.Options) (code int, err error) {
	argv := o.Command
	if len(argv) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		argv = []string{shell}
	}
	if _, err := helper.Adopt(); err != nil { // the command must not inherit descriptors that the caller left open
		return exitFailure, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return exitFailure, err
	}
	defer w.Close()
	// The kernel sends the parent-death signal when the thread that forked ends (prctl(2), PR_SET_PDEATHSIG).
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
	signals := commandSignals()
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
	done, ended := make(chan struct{}), make(chan syscall.Signal, 1)
	executed := func() bool { // the child closes its end of the pipe when it becomes the command
		fds := []unix.PollFd{{Fd: int32(w.Fd())}}
		n, _ := unix.Poll(fds, 0)
		return n > 0 && fds[0].Revents&unix.POLLERR != 0
	}
	go func() { ended <- relaySignals(cmd.Process, executed, signals, done) }()
	err = cmd.Wait()
	close(done)
	endedBy := <-ended
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return exitFailure, err
	}
	return exitStatus(cmd.ProcessState, endedBy), nil
}

// commandChild is the process in the new namespaces: it waits until they are connected and executes the command. It returns at
// once in any other process.
func commandChild() {
	hostname, marked := os.LookupEnv(commandVar)
	if !marked {
		return
	}
	os.Unsetenv(commandVar)
	unix.CloseOnExec(goFD)
	f := os.NewFile(goFD, "go")
	if _, err := io.ReadFull(f, make([]byte, 1)); err != nil {
		os.Exit(exitFailure) // the parent closed the pipe after an error, which it reports
	}
	// Mount a /proc for the new pid namespace. The kernel refuses that where parts of the existing /proc are covered, as in a
	// container; the command then sees the existing one.
	_ = unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, "")
	// The host name, which distinguishes a shell's prompt from the host's, and ping are useful but not required: errors are ignored.
	if len(hostname) > maxHostname {
		hostname = hostname[:maxHostname]
	}
	if hostname != "" {
		_ = unix.Sethostname([]byte(hostname))
	}
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0)
	path, err := exec.LookPath(os.Args[1])
	if err == nil {
		dieWithParent()
		err = syscall.Exec(path, os.Args[1:], os.Environ())
	}
	runtime.KeepAlive(f) // it stays open until execve(2)
	// The text and the exit status are those of the original.
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

// dieWithParent has the kernel kill this process, also as the command, when the parent process ends. The signal that the parent has asked for
// belongs to the first thread, and execve(2) keeps that of the thread that calls it.
func dieWithParent() {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0)
	parent := []unix.PollFd{{Fd: goFD}} // POLLHUP: the parent has ended before
	if n, _ := unix.Poll(parent, 0); n > 0 && parent[0].Revents&unix.POLLHUP != 0 {
		os.Exit(exitFailure)
	}
}

// errnoText is the text of an error as strerror(3) has it, beginning with a capital letter.
func errnoText(err error) string {
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}
