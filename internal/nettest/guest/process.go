package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ListDescriptors lists the descriptors of the guest process that are open besides those the Go runtime opens for its own
// use. Those all have close-on-exec set; inherited descriptors do not.
type ListDescriptors struct{}

func (ListDescriptors) run() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	var open []int
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			open = append(open, fd)
		}
	}
	slices.Sort(open)
	return open, nil
}

// ReadIdentity reads the ids and the effective capabilities of the guest process.
type ReadIdentity struct{}

// Identity is the result of ReadIdentity.
type Identity struct {
	UID, GID     int
	Capabilities uint64 // the effective set, bit n for capability n
}

func (ReadIdentity) run() (Identity, error) {
	id := Identity{UID: os.Getuid(), GID: os.Getgid()}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return id, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if hex, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
			id.Capabilities, err = strconv.ParseUint(hex, 16, 64)
		}
	}
	return id, err
}

// ListLinks lists the network interfaces.
type ListLinks struct{}

// NetLink is one network interface.
type NetLink struct {
	Name string
	Up   bool
	MTU  int // in bytes
}

func (ListLinks) run() (links []NetLink, err error) {
	list, err := net.Interfaces()
	for _, l := range list {
		links = append(links, NetLink{l.Name, l.Flags&net.FlagUp != 0, l.MTU})
	}
	return links, err
}

// ReadNetNS reads the identity of the network namespace, such as "net:[4026531840]".
type ReadNetNS struct{}

func (ReadNetNS) run() (string, error) { return os.Readlink("/proc/self/ns/net") }

// ReadFile reads a file.
type ReadFile struct{ Path string }

// File is the result of ReadFile.
type File struct {
	Outcome Outcome
	Text    string
}

func (op ReadFile) run() (File, error) {
	text, err := os.ReadFile(op.Path)
	return File{OutcomeOf(err), string(text)}, nil
}

// ReadHostname reads the host name.
type ReadHostname struct{}

func (ReadHostname) run() (string, error) { return os.Hostname() }

// ConnectUnix connects to a stream socket; a Path that begins with @ is an abstract address.
type ConnectUnix struct{ Path string }

func (op ConnectUnix) run() (Outcome, error) {
	c, err := net.Dial("unix", op.Path)
	if err == nil {
		c.Close()
	}
	return OutcomeOf(err), nil
}

// Exit ends the guest process with an exit status.
type Exit struct{ Code int }

func (op Exit) run() (None, error) {
	os.Exit(op.Code)
	return None{}, nil
}

// Die ends the guest process by a signal.
type Die struct{ Signal syscall.Signal }

func (op Die) run() (None, error) {
	signal.Reset()
	if err := syscall.Kill(os.Getpid(), op.Signal); err != nil {
		return None{}, err
	}
	time.Sleep(time.Second)
	return None{}, fmt.Errorf("survived %v", op.Signal)
}

// CatchSignal waits for a signal, and exits with Code when it comes. The result is the process id.
type CatchSignal struct {
	Signal syscall.Signal
	Code   int
}

func (op CatchSignal) run() (pid int, err error) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, op.Signal)
	go func() {
		<-c
		os.Exit(op.Code)
	}()
	return os.Getpid(), nil
}

// Sleep does nothing until the process is killed. The result is the process id.
type Sleep struct{}

func (Sleep) run() (pid int, err error) { return os.Getpid(), nil }

// StartDaemon starts a copy of this program that sleeps in a session of its own. The result is its process id.
type StartDaemon struct{}

func (StartDaemon) run() (pid int, err error) {
	p, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0]}, Command(Sleep{})...),
		&os.ProcAttr{Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return 0, err
	}
	pid = p.Pid // Release forgets it
	return pid, p.Release()
}

// RunShell runs a script with sh(1).
type RunShell struct{ Script string }

// Ran is what a script left.
type Ran struct {
	Code   int    // the exit status, -1 after a signal
	Output string // both of its outputs
}

func (op RunShell) run() (Ran, error) {
	cmd := exec.Command("sh", "-c", op.Script)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Ran{}, err
	}
	return Ran{cmd.ProcessState.ExitCode(), string(out)}, nil
}
