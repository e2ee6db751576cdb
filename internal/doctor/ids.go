package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// subRange is a range of subordinate ids.
type subRange struct{ start, count uint32 }

// parseSubIDs returns the ranges of a user in the text of /etc/subuid or /etc/subgid (subuid(5): name-or-uid, start,
// count, separated by colons). Lines that are not of that form are passed over, as the tools do.
func parseSubIDs(r io.Reader, name string, uid int) []subRange {
	var ranges []subRange
	s := bufio.NewScanner(r)
	for s.Scan() {
		fields := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(fields) != 3 || fields[0] == "" || (fields[0] != name && fields[0] != strconv.Itoa(uid)) {
			continue
		}
		start, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			continue
		}
		count, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil || count == 0 || start+count > 1<<32 {
			continue
		}
		ranges = append(ranges, subRange{uint32(start), uint32(count)})
	}
	return ranges
}

// subIDsOf reads the first range of the caller from a file.
func subIDsOf(path, name string, uid int) (subRange, error) {
	f, err := os.Open(path)
	if err != nil {
		return subRange{}, err
	}
	defer f.Close()
	if r := parseSubIDs(f, name, uid); len(r) > 0 {
		return r[0], nil
	}
	return subRange{}, fmt.Errorf("%s has no range for %s", path, name)
}

// probeIDs looks for ranges and has newuidmap and newgidmap map them in a child that waits.
func probeIDs(ctx context.Context) map[string]finding {
	uid := os.Geteuid()
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	found := map[string]finding{"newuidmap": probeTools()}
	uids, uerr := subIDsOf("/etc/subuid", name, uid)
	gids, gerr := subIDsOf("/etc/subgid", name, uid)
	if err := errors.Join(uerr, gerr); err != nil {
		first := uerr
		if first == nil {
			first = gerr
		}
		found["subordinate-ids"] = finding{Status: Missing, Detail: first.Error()}
		return found
	}
	found["subordinate-ids"] = okf("%d uids from %d, %d gids from %d", uids.count, uids.start, gids.count, gids.start)
	if found["newuidmap"].Status != OK {
		return found
	}
	if err := mapInChild(ctx, uid, os.Getegid(), uids, gids); err != nil {
		f := failed("map the ranges", err)
		f.Fix = fixTools
		var start *startError
		if errors.As(err, &start) {
			f = finding{Status: Untried, Detail: "no user namespace to try it on: " + errText(start.err)}
		}
		found["newuidmap"] = f
		return found
	}
	found["newuidmap"] = okf("newuidmap and newgidmap mapped the ranges")
	return found
}

func probeTools() finding {
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			return finding{Status: Missing, Detail: tool + " is not in $PATH"}
		}
		fi, err := os.Stat(path)
		if err != nil {
			return failed(path, err)
		}
		// Some distributions give file capabilities in place of the set-user-id bit.
		_, xerr := unix.Getxattr(path, "security.capability", make([]byte, 64))
		if fi.Mode()&os.ModeSetuid == 0 && xerr != nil {
			return finding{Status: Denied, Detail: path + " has neither the set-user-id bit nor file capabilities",
				Fix: fixTools}
		}
	}
	return okf("newuidmap and newgidmap are there; without ranges they were not tried")
}

const fixTools = `sudo chmod u+s "$(command -v newuidmap)" "$(command -v newgidmap)"`

// startError says that the child could not be made, which is not the tools' fault.
type startError struct{ err error }

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// mapInChild maps the caller to 0 and the ranges from 1 on in a fresh user namespace.
func mapInChild(ctx context.Context, uid, gid int, uids, gids subRange) error {
	runtime.LockOSThread() // the parent-death signal follows the thread that forked
	defer runtime.UnlockOSThread()
	cmd := command(ctx, roleHold, syscall.CLONE_NEWUSER, false)
	in, err := cmd.StdinPipe()
	if err != nil {
		return &startError{err}
	}
	if err := cmd.Start(); err != nil {
		in.Close()
		return &startError{err}
	}
	defer func() {
		in.Close()
		cmd.Wait()
	}()
	for _, t := range []struct {
		tool string
		self int
		sub  subRange
	}{{"newuidmap", uid, uids}, {"newgidmap", gid, gids}} {
		out, err := exec.CommandContext(ctx, t.tool, strconv.Itoa(cmd.Process.Pid), "0", strconv.Itoa(t.self), "1",
			"1", strconv.FormatUint(uint64(t.sub.start), 10), strconv.FormatUint(uint64(t.sub.count), 10)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %s", t.tool, firstLine(string(out), err.Error()))
		}
	}
	return nil
}

// firstLine of a program's complaint, or otherwise what is known.
func firstLine(s, otherwise string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if s == "" {
		return otherwise
	}
	return s
}
