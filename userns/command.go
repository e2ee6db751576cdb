package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// defaultPath is what Docker searches when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// startCommand forks and executes the command. The error is an *ExecError with the text that Docker uses.
func startCommand(b *runBody, fds []*os.File) (pid int, err error) {
	argv, env := toStrings(b.Argv), toStrings(b.Env)
	if len(argv) == 0 {
		return 0, &ExecError{CodeFailure, errors.New("no command specified")}
	}
	if dir := string(b.Dir); dir != "" {
		// init itself changes its directory, so that a relative path is looked up in the command's.
		if err := syscall.Chdir(dir); err != nil {
			return 0, &ExecError{CodeNotRunable, fmt.Errorf("chdir to cwd (%q): %w", dir, err)}
		}
	}
	path, err := lookPath(argv[0], env)
	if err != nil {
		code := CodeNotRunable
		if errors.Is(err, fs.ErrNotExist) {
			code = CodeNotFound
		}
		return 0, &ExecError{code, fmt.Errorf("exec: %q: %w", argv[0], err)}
	}
	files := make([]uintptr, len(fds))
	for i, f := range fds {
		c, err := f.SyscallConn() // not Fd, which would change the shared file description to blocking
		if err == nil {
			err = c.Control(func(fd uintptr) { files[i] = fd })
		}
		if err != nil {
			return 0, &ExecError{CodeFailure, err}
		}
	}
	sys := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: b.Terminal, Setctty: b.Terminal}
	for _, c := range b.Caps {
		sys.AmbientCaps = append(sys.AmbientCaps, uintptr(c))
	}
	if b.User != nil {
		sys.Credential = &syscall.Credential{Uid: b.User.UID, Gid: b.User.GID, NoSetGroups: true}
	}
	pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: files, Sys: sys})
	switch {
	case err == nil:
		return pid, nil
	case b.User != nil && errors.Is(err, syscall.EINVAL): // of setuid or setgid
		return 0, &ExecError{CodeFailure, fmt.Errorf("unable to find user %d:%d: the user namespace does not have it", b.User.UID, b.User.GID)}
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EINVAL):
		return 0, &ExecError{CodeFailure, fmt.Errorf("start %s: %w", path, err)}
	case errors.Is(err, fs.ErrNotExist): // the interpreter of a script, or the dynamic loader
		return 0, &ExecError{CodeNotFound, fmt.Errorf("exec %s: %w", path, err)}
	}
	return 0, &ExecError{CodeNotRunable, fmt.Errorf("exec %s: %w", path, err)}
}

// errNotInPath reads as Docker's message does and is an fs.ErrNotExist.
type errNotInPath struct{}

func (errNotInPath) Error() string        { return "executable file not found in $PATH" }
func (errNotInPath) Is(target error) bool { return target == fs.ErrNotExist }

// lookPath finds the file to execute in the PATH of env; if env has several, in the last one, as shells do.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	path := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	if name != "" {
		for _, dir := range filepath.SplitList(path) {
			if dir == "" {
				dir = "." // POSIX: an empty prefix is the current directory
			}
			if p := dir + "/" + name; executable(p) == nil {
				return p, nil
			}
		}
	}
	return "", errNotInPath{}
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return syscall.EISDIR
	case st.Mode()&0o111 == 0:
		return syscall.EACCES
	}
	return nil
}

func toStrings(bs [][]byte) []string {
	out := make([]string, len(bs))
	for i, b := range bs {
		out[i] = string(b)
	}
	return out
}
