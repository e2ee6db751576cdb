package userns

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/procstat"
)

// reap waits for every child that has ended. ended is set if the command is among them; code is then its exit code.
// stopped is the signal that has stopped the command, 0 for none.
func (s *initState) reap() (code int, ended bool, stopped syscall.Signal) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return code, ended, stopped
		}
		if status.Stopped() {
			if pid == s.cmd {
				stopped = status.StopSignal()
			}
			continue
		}
		if pid == s.cmd {
			code, ended = exitCode(status), true
		}
	}
}

func exitCode(w syscall.WaitStatus) int {
	if w.Signaled() {
		return codeSignal + int(w.Signal())
	}
	return w.ExitStatus()
}

// killAll kills every descendant and returns when none is left. As pid 1 of a pid namespace it needs one call. Otherwise it kills
// its children until there are none: the children of a killed child become ours (subreaper) before it can be reaped, so that
// listing the children again after each one has ended finds all of them.
func (s *initState) killAll() {
	if os.Getpid() == 1 {
		syscall.Kill(-1, syscall.SIGKILL)
		for {
			if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && err != syscall.EINTR {
				return
			}
		}
	}
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR || pid > 0:
			continue
		case err != nil: // ECHILD
			return
		}
		if s.proc == nil {
			return // no process was started: set-up did not happen
		}
		for _, pid := range s.proc.children() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		syscall.Wait4(-1, nil, 0, nil)
	}
}

// procDir is /proc, opened before the command could mount something over it.
type procDir struct {
	dir *os.File
}

func openProc() (*procDir, error) {
	f, err := os.OpenFile("/proc", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &procDir{f}, nil
}

// maxProcFile bounds the bytes read of one file of /proc: a list of children has at most 8 bytes for each of them.
const maxProcFile = 4 << 20

func (p *procDir) read(name string) ([]byte, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}

// list returns the names in a directory of /proc that are numbers.
func (p *procDir) list(name string) []int {
	fd, err := unix.Openat(int(p.dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// children lists the children of all our threads. On a kernel without CONFIG_PROC_CHILDREN it goes through all processes and
// compares their parent.
func (p *procDir) children() []int {
	self := strconv.Itoa(os.Getpid())
	var out []int
	listed := false
	for _, tid := range p.list(self + "/task") {
		b, err := p.read(fmt.Sprintf("%s/task/%d/children", self, tid))
		if err != nil {
			continue
		}
		listed = true
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				out = append(out, pid)
			}
		}
	}
	if listed {
		return out
	}
	for _, pid := range p.list(".") {
		b, err := p.read(strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		if st, err := procstat.Parse(b); err == nil && st.Parent == os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}
