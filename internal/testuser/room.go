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

// room is what the program sees of the machine.
type room struct {
	dir     string // 0755, root's
	user    testUser
	program string // a copy the user can execute
	workdir string // "" keeps the current one
	bin     string // copy of ROOTLESSNET_BIN, or ""
	mounts  []string
}

func (r *room) furnish(program string) error {
	if err := os.Chmod(r.dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"home", "run", "tmp"} {
		if err := r.own(filepath.Join(r.dir, name)); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	r.program = filepath.Join(r.dir, filepath.Base(path))
	if err := copyFile(r.program, path); err != nil {
		return err
	}
	if bin := os.Getenv("ROOTLESSNET_BIN"); bin != "" {
		r.bin = filepath.Join(r.dir, "bin")
		if err := copyDir(r.bin, bin); err != nil {
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
	if err := r.bindTree(); err != nil {
		return err
	}
	if err := r.placeTun(os.Getenv("TUN_MODE")); err != nil {
		return err
	}
	if strings.HasSuffix(r.workdir, callersPackage) {
		return r.hostContainers()
	}
	return nil
}

// bindTree makes the module reachable below r.dir and puts the working directory there.
func (r *room) bindTree() error {
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	root := moduleRoot(cwd)
	if root == "" {
		return nil
	}
	src := filepath.Join(r.dir, "src")
	if err := r.bind(root, src, true); err != nil {
		return err
	}
	rel, err := filepath.Rel(root, cwd)
	if err != nil {
		return err
	}
	r.workdir = filepath.Join(src, rel)
	return nil
}

// placeTun covers /dev/net/tun with a node of the wanted mode: "0666", "0600", or "" for leaving it.
func (r *room) placeTun(mode string) error {
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
	dev := filepath.Join(r.dir, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	// A tmpfs of its own, because /tmp is often mounted nodev.
	if err := syscall.Mount("tmpfs", dev, "tmpfs", syscall.MS_NOSUID|syscall.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	r.mounts = append(r.mounts, dev)
	node := filepath.Join(dev, "tun")
	const tunDevice = 10<<8 | 200 // Documentation/networking/tuntap.rst
	if err := syscall.Mknod(node, syscall.S_IFCHR|uint32(perm), tunDevice); err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	if err := os.Chmod(node, os.FileMode(perm)); err != nil { // whatever the umask was
		return err
	}
	return r.bind(node, "/dev/net/tun", false)
}

func (r *room) bind(from, to string, mkdir bool) error {
	if mkdir {
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount(from, to, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	r.mounts = append(r.mounts, to)
	return nil
}

// clear undoes the mounts before the directory below them is removed: a recursive removal must never walk into the tree.
func (r *room) clear() {
	for i := len(r.mounts) - 1; i >= 0; i-- {
		if err := syscall.Unmount(r.mounts[i], syscall.MNT_DETACH); err != nil {
			// Leaving the directory is better than deleting what is mounted there.
			fmt.Fprintf(os.Stderr, "testuser: unmount %s: %v\n", r.mounts[i], err)
			os.Exit(failure)
		}
	}
}

func (r *room) environ() []string {
	set := map[string]string{
		"HOME":            filepath.Join(r.dir, "home"),
		"XDG_RUNTIME_DIR": filepath.Join(r.dir, "run"),
		"TMPDIR":          filepath.Join(r.dir, "tmp"),
		"USER":            r.user.name,
		"LOGNAME":         r.user.name,
	}
	if r.bin != "" {
		set["ROOTLESSNET_BIN"] = r.bin
	}
	if r.workdir != "" {
		set["PWD"] = r.workdir
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

// own makes a directory that only the user can enter.
func (r *room) own(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Chown(path, int(r.user.uid), int(r.user.gid))
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
