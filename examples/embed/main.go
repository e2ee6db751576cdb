// Embed is a rootless container runtime in a hundred lines: it creates the namespaces itself, as every runtime does, and connects the
// network namespace with the library.
//
//	go run ./examples/embed -p 8080:80 -rootfs /path/to/rootfs -- /bin/httpd -f
//	go run ./examples/embed -- ip address
//
// Without -rootfs the command sees the host's file system.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"rootlessnet"
)

// stage is the argv[0] of the container's first process. It reads the path of a resolv.conf from descriptor 3 when the network is set
// up.
const stage = "embed-container"

func main() {
	if os.Args[0] == stage {
		fmt.Fprintln(os.Stderr, "embed:", container(os.Args[1], os.Args[2:]))
		os.Exit(127)
	}
	var ports []string
	flag.Func("p", "publish a `port`, as docker run does (repeatable)", func(s string) error { ports = append(ports, s); return nil })
	rootfs := flag.String("rootfs", "/", "`directory` that becomes the root")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	code, err := run(ports, *rootfs, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
	}
	os.Exit(code)
}

func run(ports []string, rootfs string, argv []string) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	wait, ready, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	// 1. Start a process in new namespaces, which waits for the network.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{rootfs}, argv...)...)
	cmd.Args[0] = stage
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{wait}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	wait.Close()
	defer cmd.Wait()
	defer ready.Close() // after an error this ends the process, which waits for the pipe

	// 2. Connect its network namespace, until the process ends.
	box, err := rootlessnet.Attach(ctx, rootlessnet.Target{PID: cmd.Process.Pid}, rootlessnet.Config{
		Configure: true, Publish: ports, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return 1, err
	}
	defer box.Close()

	// 3. Let the process execute the command.
	resolvConf, err := os.CreateTemp("", "resolv.conf")
	if err != nil {
		return 1, err
	}
	defer os.Remove(resolvConf.Name())
	defer resolvConf.Close()
	if err := errors.Join(resolvConf.Chmod(0o644), write(resolvConf, box.ResolvConf()), write(ready, []byte(resolvConf.Name()))); err != nil {
		return 1, err
	}
	ready.Close()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// container runs as root of the new namespaces. It executes the command, or returns an error.
func container(rootfs string, argv []string) error {
	pipe := os.NewFile(3, "ready")
	resolvConf, err := io.ReadAll(pipe)
	if err != nil || len(resolvConf) == 0 {
		return errors.New("the network was not set up")
	}
	pipe.Close()
	mount := func(source, target, kind string, flags uintptr) {
		if e := syscall.Mount(source, target, kind, flags, ""); e != nil && err == nil {
			err = fmt.Errorf("mount %s: %w", target, e)
		}
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE)
	mount(string(resolvConf), filepath.Join(rootfs, "etc/resolv.conf"), "", syscall.MS_BIND)
	mount("proc", filepath.Join(rootfs, "proc"), "proc", 0)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Sethostname([]byte("embed")), syscall.Chroot(rootfs), os.Chdir("/")); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}
