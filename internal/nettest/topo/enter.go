package topo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// entered marks, in the environment, the process that Enter re-executed. It is removed at once on the inside.
const entered = "ROOTLESSNET_TOPO_ENTERED"

// failure is the exit status when the namespaces cannot be made.
const failure = 125

// Enter puts the program into a user, mount and network namespace of its own: the first call re-executes it with the
// same arguments, waits and exits as it did; the call of the re-executed program returns. It must come first in main or
// TestMain, before the program has opened or started anything. Where it is impossible the program prints the reason
// on stderr and exits with 125.
func Enter() {
	if os.Getenv(entered) != "" {
		os.Unsetenv(entered)
		if err := settle(); err != nil {
			fail(err)
		}
		return
	}
	if os.Getuid() == 0 {
		fail(errors.New("must run as an ordinary user: use `make test` or `make bench`, which make one"))
	}
	code, err := reexec()
	if err != nil {
		fail(fmt.Errorf("no user namespace: %w", err))
	}
	os.Exit(code)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "topo:", err)
	os.Exit(failure)
}

func reexec() (int, error) {
	caps, err := allCapabilities()
	if err != nil {
		return 0, err
	}
	// pdeathsig follows the thread that forked.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), entered+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
		AmbientCaps: caps,
		Pdeathsig:   syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// settle keeps our mounts from the rest of the machine.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount / as slave: %w", err)
	}
	return nil
}

func allCapabilities() ([]uintptr, error) {
	last, err := lastCapability()
	if err != nil {
		return nil, err
	}
	caps := make([]uintptr, last+1)
	for i := range caps {
		caps[i] = uintptr(i)
	}
	return caps, nil
}

func lastCapability() (int, error) {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// dropCapabilities leaves the calling thread, and what it forks, without any. The thread must never be used for
// anything else again.
func dropCapabilities() error {
	last, err := lastCapability()
	if err != nil {
		return err
	}
	for c := range last + 1 {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// Cover binds a new file with the given content over the file at path, for everything that this program starts from
// now on. The returned file can be written again to change what they read; the caller removes it at the end, not before,
// as nothing can be mounted over a removed file. A symbolic link is followed.
func Cover(path string, content []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "cover")
	if err != nil {
		return nil, err
	}
	if err = f.Chmod(0o644); err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = unix.Mount(f.Name(), path, "", unix.MS_BIND, "")
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, fmt.Errorf("bind a file over %s: %w", path, err)
	}
	return f, nil
}
