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

// daemonVar is set in the environment of the background process to the number of the descriptor on which it reports.
const daemonVar = "ROOTLESSNET_PASTA_DAEMON"

// Reports of the background process: one byte; after reportFailed the error message follows, up to the end of the stream.
const (
	reportReady  = '0'
	reportFailed = '1'
)

// maxReport is the maximum size in bytes of a report, which holds one error message.
const maxReport = 64 << 10

// daemon is the background process, which reports to the foreground process that started it.
type daemon struct {
	fd     int
	report *os.File // nil until adopt

	mu     sync.Mutex
	stderr *os.File // the caller's standard error; nil once ready has closed it; guarded by mu
}

// Write writes a log line to the caller's standard error. After ready has closed that, Write discards the line.
func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stderr == nil {
		return len(b), nil
	}
	return d.stderr.Write(b)
}

// daemonChild returns nil if this process is not the background process.
func daemonChild() *daemon {
	fd, err := strconv.Atoi(os.Getenv(daemonVar))
	if err != nil || fd < 3 {
		return nil
	}
	os.Unsetenv(daemonVar)
	unix.CloseOnExec(fd)
	helper.SetName(program)
	return &daemon{fd: fd}
}

// adopt closes the descriptors that the caller left open and replaces the standard streams by /dev/null, so that processes which
// the daemon starts do not keep the caller's streams open. It keeps a duplicate of the caller's standard error in d.stderr. With
// d nil, in the foreground, the streams stay.
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

// daemonise starts this program again in the background, waits until that process is ready and returns the exit status. Until it
// is ready, the background process has the standard streams of this one, so that the caller sees its warnings.
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

// ready reports to the foreground process, which then exits. It closes the caller's standard error if that is a pipe, because the
// caller may wait for the end of the pipe; a file or a terminal stays open if logToStderr is set.
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

// isPipe reports whether fd is a pipe or a socket: its reader may wait for the end of the stream.
func isPipe(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return true
	}
	kind := st.Mode & unix.S_IFMT
	return kind == unix.S_IFIFO || kind == unix.S_IFSOCK
}

// failed reports err to the foreground process, or to standard error before adopt. After ready the report is closed and the error
// is lost.
func (d *daemon) failed(err error) {
	if d.report == nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		return
	}
	_, _ = d.report.Write(append([]byte{reportFailed}, err.Error()...))
	_ = d.report.Close()
}
