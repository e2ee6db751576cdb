package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/helper"
)

// daemonVar tells the second process which descriptor it reports on.
const daemonVar = "ROOTLESSNET_PASTA_DAEMON"

// Reports of the second process: one byte, and after reportFailed a message up to the end.
const (
	reportReady  = '0'
	reportFailed = '1'
)

// maxReport bounds a message.
const maxReport = 64 << 10

// daemon is the second process's side.
type daemon struct {
	fd     int
	report *os.File // nil until adopted

	mu     sync.Mutex
	stderr *os.File // our caller's standard error; nil once it was let go of; guarded by mu
}

// Write is where messages go: to our caller until it is let go of, and after that only where it has a file or a
// terminal that it asked us to write to.
func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stderr == nil {
		return len(b), nil
	}
	return d.stderr.Write(b)
}

// daemonChild returns nil if this process is not the second one.
func daemonChild() *daemon {
	fd, err := strconv.Atoi(os.Getenv(daemonVar))
	if err != nil || fd < 3 {
		return nil
	}
	os.Unsetenv(daemonVar)
	unix.CloseOnExec(fd)
	// It was started by /proc/self/exe, and the kernel calls it "exe". What looks for pasta by its name (pidof, pgrep) is to
	// find it; nothing depends on it.
	_ = os.WriteFile("/proc/self/comm", []byte(program), 0)
	return &daemon{fd: fd}
}

// adopt closes what our caller left open, and puts /dev/null in place of its streams, which processes of ours would keep
// open: only we know them from now on.
func (d *daemon) adopt() error {
	if d == nil {
		_, err := helper.Adopt()
		return err
	}
	files, err := helper.Adopt(d.fd, unix.Stderr)
	if err != nil {
		return err
	}
	d.report, d.stderr = files[0], files[1]
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}

// daemonise starts this program again in the background, waits until it is ready and returns the exit status. Our
// standard streams are the child's until it is ready, so that its warnings are seen.
func daemonise() int {
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "%s: start in the background: %v\n", program, err)
		return exitFailure
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	const reportFD = 3 // the first of ExtraFiles
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), daemonVar+"="+strconv.Itoa(reportFD))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fail(err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxReport))
	switch {
	case err != nil:
		return fail(err)
	case len(text) > 0 && text[0] == reportReady:
		return 0
	case len(text) > 0:
		fmt.Fprintf(os.Stderr, "%s: %s\n", program, text[1:])
	default:
		fmt.Fprintf(os.Stderr, "%s: the background process has ended: %v\n", program, cmd.Wait())
	}
	return exitFailure
}

// ready lets the first process go. Our caller may wait for the end of its pipes, so those are let go of as well; a file
// or a terminal stays where logging to it was asked for.
func (d *daemon) ready(logToStderr bool) error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	d.mu.Lock()
	if !logToStderr || isPipe(int(d.stderr.Fd())) {
		_ = d.stderr.Close()
		d.stderr = nil
	}
	d.mu.Unlock()
	_, _ = d.report.Write([]byte{reportReady})
	return d.report.Close()
}

// isPipe says that somebody may be reading until the end.
func isPipe(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return true
	}
	kind := st.Mode & unix.S_IFMT
	return kind == unix.S_IFIFO || kind == unix.S_IFSOCK
}

// failed tells the first process why. After ready nobody listens.
func (d *daemon) failed(err error) {
	if d.report == nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		return
	}
	_, _ = d.report.Write(append([]byte{reportFailed}, err.Error()...))
	_ = d.report.Close()
}
