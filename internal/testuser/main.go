package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// failure is the exit status of testuser's own errors; go test prints the messages on stderr.
const failure = 125

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: testuser PROGRAM [ARG...]")
		os.Exit(failure)
	}
	if os.Getuid() != 0 {
		path, err := exec.LookPath(os.Args[1])
		if err == nil {
			err = syscall.Exec(path, os.Args[1:], os.Environ())
		}
		fmt.Fprintln(os.Stderr, "testuser:", err)
		os.Exit(failure)
	}
	code, err := runAsUser(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testuser:", err)
		os.Exit(failure)
	}
	os.Exit(code)
}

// runAsUser runs argv as the test user and returns its exit status, 128+n if signal n ended it.
func runAsUser(argv []string) (code int, err error) {
	u, err := findUser()
	if err != nil {
		return 0, err
	}
	// The mount namespace and pdeathsig belong to the thread that forks: this one, until the end.
	runtime.LockOSThread()

	dir, err := shortDir()
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	e := environment{dir: dir, user: u}
	// Before the removal, whatever happens: the tree is mounted below dir.
	defer e.unmountAll()
	if err := e.prepare(argv[0]); err != nil {
		return 0, err
	}

	cmd := exec.Command(e.program, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir = e.workdir
	cmd.Env = e.environ()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid},
		Pdeathsig:  syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	adoptOrphans(cmd.Process.Pid)
	err = cmd.Wait()
	endOrphans()
	signal.Stop(signals)
	close(signals)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// shortDir makes a directory like os.MkdirTemp, with a shorter name: the path of a unix socket (108 bytes at most) with
// a sandbox's whole id in it goes below.
func shortDir() (string, error) {
	const attempts = 100
	var err error
	for i := range attempts {
		dir := fmt.Sprintf("/tmp/rt%d", os.Getpid()+i)
		if err = os.Mkdir(dir, 0o700); err == nil {
			return dir, nil
		}
	}
	return "", err
}

// moduleRoot is the nearest directory at or above dir that has a go.mod; "" when there is none.
func moduleRoot(dir string) string {
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}
