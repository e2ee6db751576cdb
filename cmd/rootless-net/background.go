package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// execVar is set in the environment of the background process of exec -d: the descriptor number of the pipe on which it reports.
const execVar = "ROOTLESS_NET_EXEC"

// execReport is the background process's end of the pipe; nil in any other process.
type execReport struct {
	pipe *os.File
	once sync.Once
}

// detachedExec returns nil if this process is not the background process.
func detachedExec() *execReport {
	fd, err := strconv.Atoi(os.Getenv(execVar))
	if err != nil || fd <= 2 {
		return nil
	}
	os.Unsetenv(execVar)
	unix.CloseOnExec(fd)
	return &execReport{pipe: os.NewFile(uintptr(fd), "report")}
}

// started tells the foreground process that the command runs.
func (r *execReport) started() {
	if r != nil {
		r.once.Do(func() { r.pipe.Close() })
	}
}

// pass tells the foreground process why the command could not be started, if it was not, and returns err.
func (r *execReport) pass(err error) error {
	if r == nil {
		return err
	}
	r.once.Do(func() {
		code := exitFailure
		var exit exitError
		if errors.As(err, &exit) {
			code = exit.code
		}
		fmt.Fprintf(r.pipe, "%d\n%v", code, err)
		r.pipe.Close()
	})
	return err
}

// execInBackground starts this program again with the same arguments, in a session of its own, and returns when the command of exec
// has started in the sandbox.
func (p *program) execInBackground(ref string) error {
	if _, client, err := p.find(ref); err != nil { // before a process is started
		return err
	} else {
		client.Close()
	}
	report, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), execVar+"=3") // the first of ExtraFiles
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	theirs.Close()
	text, err := io.ReadAll(report)
	if err != nil {
		return err
	}
	if len(text) == 0 {
		return cmd.Process.Release()
	}
	_ = cmd.Wait() // its status is in the report
	code, reason, _ := strings.Cut(string(text), "\n")
	n, err := strconv.Atoi(code)
	if err != nil {
		n = exitFailure
	}
	return exitError{n, errors.New(reason)}
}

// readEnvFile reads a file of lines "NAME=value" or "NAME", as docker does: empty lines and those that begin with # are skipped, and
// nothing is unquoted.
func readEnvFile(path string) (list []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxEnvLine)
	for lines.Scan() {
		text := strings.TrimLeft(lines.Text(), " \t")
		if text == "" || text[0] == '#' {
			continue
		}
		if name, _, _ := strings.Cut(text, "="); name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("invalid env file (%s): variable %q", path, name)
		}
		list = append(list, text)
	}
	return list, lines.Err()
}

// maxEnvLine is the size of the longest argument or variable that the kernel passes to a program (MAX_ARG_STRLEN).
const maxEnvLine = 128 << 10
