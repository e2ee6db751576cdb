package userns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"rootlessnet/internal/subid"
	"rootlessnet/netns"
)

// idRange is Count ids from First on.
type idRange struct {
	First uint32 `json:"first"`
	Count uint32 `json:"count"`
}

// maxSubRanges is how many ranges of one file are used at most: the kernel takes 340 lines of a map (UID_GID_MAP_MAX_EXTENTS),
// one of which is for the user's own id.
const maxSubRanges = 339

// mapIDs writes the id maps of the process pid, which was just cloned into a new user namespace. It returns the gids that are
// mapped, as seen inside, and warnings.
func mapIDs(ctx context.Context, pid int, mode IDMap) (gids idRange, warnings []string, err error) {
	uid, gid := os.Geteuid(), os.Getegid()
	switch mode {
	case IDMapKeepID:
		if err := writeMap(pid, "uid", uid, uid); err != nil {
			return gids, nil, err
		}
		return idRange{uint32(gid), 1}, nil, writeMap(pid, "gid", gid, gid)
	case IDMapAuto:
		_, uerr := helperMap(ctx, pid, "uid", uid)
		if uerr == nil {
			n, gerr := helperMap(ctx, pid, "gid", gid)
			if gerr == nil {
				return idRange{0, n}, nil, nil
			}
			if err := interrupted(ctx, gerr); err != nil {
				return gids, nil, err
			}
			// uid_map can be written only once: it keeps its ranges.
			warnings = append(warnings, "only one gid is mapped: "+gerr.Error())
			return idRange{0, 1}, warnings, writeMap(pid, "gid", 0, gid)
		}
		if err := interrupted(ctx, uerr); err != nil {
			return gids, nil, err
		}
		warnings = append(warnings, "only uid 0 and gid 0 are mapped: "+uerr.Error())
	}
	if err := writeMap(pid, "uid", 0, uid); err != nil {
		return gids, warnings, err
	}
	return idRange{0, 1}, warnings, writeMap(pid, "gid", 0, gid)
}

// interrupted returns the error of a start that ended while a tool ran that failed with err; nil if the tool failed by itself.
func interrupted(ctx context.Context, err error) error {
	var e *InterruptedError
	if errors.As(err, &e) {
		return e
	}
	return ctx.Err()
}

// writeMap maps one id. An ordinary user may map the own gid only after denying setgroups (user_namespaces(7)).
func writeMap(pid int, kind string, inside, outside int) error {
	if kind == "gid" {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/setgroups", pid), []byte("deny"), 0); err != nil {
			return &Error{Op: "deny setgroups", Err: unwrapErrno(err), Hint: netns.HintDoctor}
		}
	}
	line := fmt.Sprintf("%d %d 1\n", inside, outside)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s_map", pid, kind), []byte(line), 0); err != nil {
		return &Error{Op: "map the " + kind, Err: unwrapErrno(err), Hint: netns.HintDoctor}
	}
	return nil
}

// helperMap maps 0 inside to id, and from 1 on the subordinate ids, by newuidmap or newgidmap. It returns how many ids are
// mapped.
func helperMap(ctx context.Context, pid int, kind string, id int) (uint32, error) {
	name := ""
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
		name = u.Username
	}
	ranges, err := subid.Read("/etc/sub"+kind, name, os.Getuid(), maxSubRanges)
	if err != nil {
		return 0, err
	}
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(id), "1"}
	next := uint32(1)
	for _, r := range ranges {
		if next+r.Count < next { // beyond the last id
			break
		}
		args = append(args, fmt.Sprint(next), fmt.Sprint(r.First), fmt.Sprint(r.Count))
		next += r.Count
	}
	tool := "new" + kind + "map"
	cmd := exec.CommandContext(ctx, tool, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return 0, fmt.Errorf("%s is not installed (package uidmap or shadow-utils)", tool)
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			if e := interruption(exit.Sys().(syscall.WaitStatus)); e != nil {
				return 0, e
			}
		}
		return 0, fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(stderr.String()))
	}
	return next, nil
}
