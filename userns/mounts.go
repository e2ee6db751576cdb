package userns

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

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
