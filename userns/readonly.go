package userns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stayWritable are the directories that --read-only leaves as they are: devices, and file systems of the kernel.
var stayWritable = []string{"/proc", "/sys", "/dev"}

// readOnly makes every mount of the mount namespace read-only, except those in stayWritable and keep. What the host mounts later does
// not appear any more, because it would be writable.
func readOnly(keep []string) error {
	fail := func(err error) error { return &Error{Op: "make the file systems read-only", Err: err} }
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fail(err)
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fail(err)
	}
	for _, point := range mountPoints(string(text)) {
		if within(point, stayWritable) || within(point, keep) {
			continue
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		err := unix.MountSetattr(unix.AT_FDCWD, point, unix.AT_SYMLINK_NOFOLLOW, &attr)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOSYS):
			return fail(fmt.Errorf("it needs Linux 5.12: %w", err))
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTDIR):
			// Another mount covers it, or its directory cannot be entered: the command does not reach it either.
		default:
			return fail(fmt.Errorf("%s: %w", point, err))
		}
	}
	return nil
}

// mountPoints are the paths in the text of a mountinfo file (proc(5)), which has blanks and backslashes as octal numbers.
func mountPoints(text string) (points []string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 4 {
			points = append(points, unescape.Replace(f[4]))
		}
	}
	return points
}

// within says whether path is one of dirs or below one.
func within(path string, dirs []string) bool {
	for _, d := range dirs {
		if path == d || strings.HasPrefix(path, d+"/") {
			return true
		}
	}
	return false
}

// write sets the parameter. /proc/sys/net is that of the writer's network namespace.
func (c Sysctl) write() error {
	name := strings.ReplaceAll(c.Path, "/", ".")
	err := os.WriteFile("/proc/sys/"+c.Path, []byte(c.Value), 0)
	if errors.Is(err, syscall.ENOENT) {
		return &Error{Op: "set sysctl " + name, Err: errors.New("this kernel or network namespace has no such parameter")}
	}
	if err != nil {
		return &Error{Op: "set sysctl " + name + " to " + c.Value, Err: unwrapErrno(err)}
	}
	return nil
}
