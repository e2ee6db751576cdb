package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/subid"
)

// probeIDs reads the subordinate ids of the caller and maps them in a waiting child with newuidmap and newgidmap.
func probeIDs(ctx context.Context) map[string]finding {
	uid := os.Geteuid()
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	found := map[string]finding{"newuidmap": probeTools()}
	uids, err := subid.Read("/etc/subuid", name, uid, 1)
	var gids []subid.Range
	if err == nil {
		gids, err = subid.Read("/etc/subgid", name, uid, 1)
	}
	if err != nil {
		found["subordinate-ids"] = finding{Status: Missing, Detail: err.Error()}
		return found
	}
	found["subordinate-ids"] = okf("%d uids from %d, %d gids from %d", uids[0].Count, uids[0].First, gids[0].Count, gids[0].First)
	if found["newuidmap"].Status != OK {
		return found
	}
	if err := mapInChild(ctx, uid, os.Getegid(), uids[0], gids[0]); err != nil {
		f := failed("map the ranges", err)
		f.Fix = fixTools
		var start *startError
		if errors.As(err, &start) {
			f = finding{Status: Untried, Detail: "no user namespace to test it on: " + errText(start.err)}
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
		// Some distributions use file capabilities instead of the set-user-id bit.
		_, xerr := unix.Getxattr(path, "security.capability", make([]byte, 64))
		if fi.Mode()&os.ModeSetuid == 0 && xerr != nil {
			return finding{Status: Denied, Detail: path + " has neither the set-user-id bit nor file capabilities",
				Fix: fixTools}
		}
	}
	return okf("newuidmap and newgidmap are installed; without ranges they were not tested")
}

const fixTools = `sudo chmod u+s "$(command -v newuidmap)" "$(command -v newgidmap)"`

// startError means that the child could not be started, so that the tools were not tested.
type startError struct{ err error }

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// mapInChild maps id 0 to the caller, and the ids from 1 on to the ranges, in a new user namespace.
func mapInChild(ctx context.Context, uid, gid int, uids, gids subid.Range) error {
	runtime.LockOSThread() // as in runChild
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
		sub  subid.Range
	}{{"newuidmap", uid, uids}, {"newgidmap", gid, gids}} {
		out, err := exec.CommandContext(ctx, t.tool, strconv.Itoa(cmd.Process.Pid), "0", strconv.Itoa(t.self), "1",
			"1", strconv.FormatUint(uint64(t.sub.First), 10), strconv.FormatUint(uint64(t.sub.Count), 10)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %s", t.tool, firstLine(string(out), err.Error()))
		}
	}
	return nil
}

// firstLine returns the first line of s, or otherwise if there is none.
func firstLine(s, otherwise string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if s == "" {
		return otherwise
	}
	return s
}
