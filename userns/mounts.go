package userns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

const (
	resolvConf = "/etc/resolv.conf"
	hostsFile  = "/etc/hosts"
	nsswitch   = "/etc/nsswitch.conf"

	resolvedDir = "/run/systemd/resolve"

	// maxNsswitch bounds what is read of nsswitch.conf; a real one is under 1 KiB.
	maxNsswitch = 64 << 10
)

// nameServiceDirs have sockets by which glibc bypasses resolv.conf: nscd's and nss-resolve's. Covering the latter also keeps
// systemd-resolved from replacing a file that has a bind mount of ours, which would remove the mount.
var nameServiceDirs = []string{"/run/nscd", "/var/run/nscd", resolvedDir}

// stagingDirs are tried in order for the temporary mount on which the files are made. It is unmounted before the command
// starts.
var stagingDirs = []string{"/tmp", "/run", "/mnt", "/var", "/etc"}

// stagingOptions limit the size, so that the command cannot fill memory by way of the files.
const stagingOptions = "mode=0755,size=32m,nr_inodes=16"

// emptyOptions is for a directory that stays empty: one page, and inodes for the root and the few files that may be made as
// mount points.
const emptyOptions = "mode=0755,size=4k,nr_inodes=8"

// setupMounts changes the mount namespace of the process, a copy of another one. What the sandbox can do without is a warning.
func setupMounts(b *setupBody, w *warnings) (*fileSet, error) {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, &Error{Op: "make mounts private", Err: err, Hint: netns.HintDoctor}
	}
	if b.PIDNamespace {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return nil, &Error{Op: "mount /proc of the pid namespace", Err: err,
				Hint: "a container that masks parts of /proc does not allow it"}
		}
	}
	if b.Network == NetworkNew || b.Network == NetworkNone {
		if err := mountSysfs(); err != nil {
			w.add("/sys shows the host's network interfaces: mount sysfs: %v", err)
		}
	}
	files := new(fileSet)
	if b.Network == NetworkJoin {
		// The copy has the target's files already; only the hidden directories are left to do.
		hide(b.Hidden, w)
		return files, nil
	}
	if err := files.mount(&b.Files, w); err != nil {
		return nil, err
	}
	hide(b.Hidden, w)
	return files, nil
}

// mountSysfs mounts the sysfs of the network namespace over the host's, and the cgroup file systems in it again, where programs
// read their limits.
func mountSysfs() error {
	cgroup, cerr := unix.OpenTree(unix.AT_FDCWD, "/sys/fs/cgroup",
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if cerr == nil {
		defer unix.Close(cgroup)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if cerr == nil {
		cerr = unix.MoveMount(cgroup, "", unix.AT_FDCWD, "/sys/fs/cgroup", unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if cerr != nil && !errors.Is(cerr, fs.ErrNotExist) {
		// Limits matter more than /sys/class/net.
		return errors.Join(cerr, unix.Unmount("/sys", unix.MNT_DETACH))
	}
	return nil
}

// hiddenOptions: a sandbox inside this one keeps its own state in the directory.
const hiddenOptions = "mode=0700,size=16m,nr_inodes=1k"

// hide mounts an empty directory over each that exists. If the working directory is in one of them, it becomes the new one.
func hide(dirs []string, w *warnings) {
	here, err := os.Getwd()
	for _, d := range dirs {
		merr := unix.Mount("tmpfs", d, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, hiddenOptions)
		if merr != nil && !errors.Is(merr, fs.ErrNotExist) {
			w.add("cannot hide %s: %v", d, merr)
		}
		if merr == nil && err == nil && strings.HasPrefix(here+"/", d+"/") {
			_ = unix.Chdir(d)
		}
	}
}

// stage mounts an empty tmpfs on one of stagingDirs, calls f with its path, and unmounts it. Bind mounts of its files stay.
func stage(f func(dir string) error) error {
	var errs []error
	for _, d := range stagingDirs {
		if st, err := os.Lstat(d); err != nil || !st.IsDir() {
			continue
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, stagingOptions); err != nil {
			errs = append(errs, err)
			continue
		}
		err := f(d)
		if uerr := unix.Unmount(d, unix.MNT_DETACH); err == nil && uerr != nil {
			err = &Error{Op: "unmount " + d, Err: uerr}
		}
		return err
	}
	return &Error{Op: "mount a tmpfs", Err: errors.Join(append(errs, unix.EPERM)...), Hint: netns.HintDoctor}
}

// coverNameServices mounts empty directories over those with the sockets of name services. The one of systemd-resolved gets the
// files that /etc/resolv.conf may link to.
func coverNameServices(ourResolvConf string, w *warnings) {
	for _, d := range nameServiceDirs {
		real, err := filepath.EvalSymlinks(d)
		if err != nil {
			continue
		}
		if d != real && real == "/run/nscd" {
			continue // /var/run is a link to /run
		}
		if err := unix.Mount("tmpfs", real, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, emptyOptions); err != nil {
			w.add("cannot cover %s, names may be looked up by the host: %v", d, err)
			continue
		}
		if d != resolvedDir || ourResolvConf == "" {
			continue
		}
		for _, name := range []string{"resolv.conf", "stub-resolv.conf"} {
			p := filepath.Join(real, name)
			err := os.WriteFile(p, nil, 0o644)
			if err == nil {
				err = bind(ourResolvConf, p)
			}
			if err != nil {
				w.add("cannot replace %s: %v", p, err)
			}
		}
	}
}

func bind(from, to string) error { return unix.Mount(from, to, "", unix.MS_BIND, "") }

// bindOver bind-mounts our file over path, following symbolic links.
func bindOver(ours, path string, w *warnings) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil && strings.HasPrefix(real, resolvedDir+"/") && path == resolvConf {
		return // coverNameServices has put it there
	}
	if err == nil {
		err = bind(ours, real)
	}
	if err != nil {
		w.add("cannot replace %s, the host's stays: %v", path, err)
	}
}
