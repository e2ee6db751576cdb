package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// environment holds the directories, mounts and variables that the program gets.
type environment struct {
	dir     string // 0755, root's
	user    testUser
	program string // a copy the user can execute
	workdir string // "" keeps the current one
	bin     string // copy of ROOTLESSNET_BIN, or ""
	mounts  []string
}

func (e *environment) prepare(program string) error {
	if err := os.Chmod(e.dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"home", "run", "tmp"} {
		if err := e.own(filepath.Join(e.dir, name)); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	e.program = filepath.Join(e.dir, filepath.Base(path))
	if err := copyFile(e.program, path); err != nil {
		return err
	}
	if bin := os.Getenv("ROOTLESSNET_BIN"); bin != "" {
		e.bin = filepath.Join(e.dir, "bin")
		if err := copyDir(e.bin, bin); err != nil {
			return err
		}
	}
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		fmt.Fprintln(os.Stderr, "testuser: no private mount namespace, /dev/net/tun and the tree stay as they are:", err)
		return nil
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount / private: %w", err)
	}
	if err := e.bindTree(); err != nil {
		return err
	}
	if err := e.placeTun(os.Getenv("TUN_MODE")); err != nil {
		return err
	}
	if strings.HasSuffix(e.workdir, callersPackage) {
		return e.hostContainers()
	}
	return nil
}

// bindTree makes the module reachable below e.dir and puts the working directory there.
func (e *environment) bindTree() error {
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	root := moduleRoot(cwd)
	if root == "" {
		return nil
	}
	src := filepath.Join(e.dir, "src")
	if err := e.bind(root, src, true); err != nil {
		return err
	}
	rel, err := filepath.Rel(root, cwd)
	if err != nil {
		return err
	}
	e.workdir = filepath.Join(src, rel)
	return nil
}

// placeTun covers /dev/net/tun with a node of the wanted mode: "0666", "0600", or "" for leaving it.
func (e *environment) placeTun(mode string) error {
	if mode == "" {
		return nil
	}
	perm, err := strconv.ParseUint(mode, 8, 32)
	if err != nil {
		return fmt.Errorf("TUN_MODE=%q: not an octal mode", mode)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("TUN_MODE=%s needs /dev/net/tun: %w", mode, err)
	}
	dev := filepath.Join(e.dir, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	// A tmpfs of its own, because /tmp is often mounted nodev.
	if err := syscall.Mount("tmpfs", dev, "tmpfs", syscall.MS_NOSUID|syscall.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	e.mounts = append(e.mounts, dev)
	node := filepath.Join(dev, "tun")
	const tunDevice = 10<<8 | 200 // Documentation/networking/tuntap.rst
	if err := syscall.Mknod(node, syscall.S_IFCHR|uint32(perm), tunDevice); err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	if err := os.Chmod(node, os.FileMode(perm)); err != nil { // whatever the umask was
		return err
	}
	return e.bind(node, "/dev/net/tun", false)
}

func (e *environment) bind(from, to string, mkdir bool) error {
	if mkdir {
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount(from, to, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	e.mounts = append(e.mounts, to)
	return nil
}

// unmountAll undoes the mounts before the directory below them is removed: a recursive removal must never walk into the tree.
func (e *environment) unmountAll() {
	for i := len(e.mounts) - 1; i >= 0; i-- {
		if err := syscall.Unmount(e.mounts[i], syscall.MNT_DETACH); err != nil {
			// Leaving the directory is better than deleting what is mounted there.
			fmt.Fprintf(os.Stderr, "testuser: unmount %s: %v\n", e.mounts[i], err)
			os.Exit(failure)
		}
	}
}

func (e *environment) environ() []string {
	set := map[string]string{
		"HOME":            filepath.Join(e.dir, "home"),
		"XDG_RUNTIME_DIR": filepath.Join(e.dir, "run"),
		"TMPDIR":          filepath.Join(e.dir, "tmp"),
		"USER":            e.user.name,
		"LOGNAME":         e.user.name,
	}
	if e.bin != "" {
		set["ROOTLESSNET_BIN"] = e.bin
	}
	if e.workdir != "" {
		set["PWD"] = e.workdir
	}
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if _, ours := set[name]; !ours {
			env = append(env, kv)
		}
	}
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	return env
}

// own makes a directory that only the test user can enter.
func (e *environment) own(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Chown(path, int(e.user.uid), int(e.user.gid))
}

func copyDir(to, from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if err := copyFile(filepath.Join(to, e.Name()), filepath.Join(from, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer func() {
		if e := out.Close(); err == nil {
			err = e
		}
	}()
	if err := out.Chmod(0o755); err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}
