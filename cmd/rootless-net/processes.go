package main

import (
	"bytes"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/api"
	"rootlessnet/internal/procstat"
)

// initName is the name of the processes of ours in a sandbox: PID 1 and the parents of exec's commands (package userns).
const initName = "rootless-init"

// process is a process of a sandbox.
type process struct {
	pid  int
	uid  uint32 // outside
	stat procstat.Stat
	cmd  string
}

// processes lists the processes of a sandbox by pid: the descendants of its PID 1, which reaps orphans, and those in the same mount
// namespace, which exec has started; of an attached namespace all processes in it.
func processes(box api.Sandbox) []process {
	stats := map[int]procstat.Stat{}
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			if stat, err := procstat.Read(pid); err == nil { // otherwise it has ended
				stats[pid] = stat
			}
		}
	}
	inside := memberOf(box, stats)
	var list []process
	for pid, stat := range stats {
		if pid == box.InitPID || !inside(pid) {
			continue
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.TrimSpace(string(name)) == initName {
			continue
		}
		p := process{pid: pid, stat: stat, cmd: "[" + strings.TrimSpace(string(name)) + "]"}
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(line) > 0 {
			p.cmd = strings.Join(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"), " ")
		}
		if info, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				p.uid = st.Uid
			}
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b process) int { return a.pid - b.pid })
	return list
}

// memberOf returns a function that says whether a process belongs to the sandbox.
func memberOf(box api.Sandbox, stats map[int]procstat.Stat) func(pid int) bool {
	if box.Network == networkAttach {
		return func(pid int) bool { return namespaceInode(pid, "net") == box.NetNS && box.NetNS != 0 }
	}
	mounts := namespaceInode(box.InitPID, "mnt")
	return func(pid int) bool {
		if mounts != 0 && namespaceInode(pid, "mnt") == mounts {
			return true
		}
		for range len(stats) { // a chain of parents is no longer than that
			parent := stats[pid].Parent
			if parent == box.InitPID && parent > 0 {
				return true
			}
			if parent <= 1 {
				return false
			}
			pid = parent
		}
		return false
	}
}

// namespaceInode is the inode of a namespace of a process; 0 if it cannot be read.
func namespaceInode(pid int, kind string) uint64 {
	var st unix.Stat_t
	if pid <= 0 || unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), &st) != nil {
		return 0
	}
	return st.Ino
}

// userName is the name of a uid, or the number.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// ticks is the number of clock ticks in a second in /proc (USER_HZ).
const ticks = 100

// startTime is when a process started.
func startTime(s procstat.Stat, now time.Time) time.Time {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return now
	}
	return now.Add(-time.Duration(up.Nano())).Add(time.Duration(s.Start) * time.Second / ticks)
}

// ttyName is the name of a terminal by its device number, as ps prints it.
func ttyName(tty int) string {
	device := uint64(uint32(tty))
	major, minor := unix.Major(device), unix.Minor(device)
	switch {
	case tty == 0:
		return "?"
	case major >= 136 && major <= 143: // UNIX98 pseudo terminals (admin-guide/devices.txt)
		return fmt.Sprintf("pts/%d", (major-136)*256+minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	}
	return fmt.Sprintf("%d,%d", major, minor)
}

// usage is what the processes of a sandbox use.
type usage struct {
	cpu         time.Duration
	memory      uint64 // bytes; pages that several processes share count once
	read, wrote uint64 // bytes from and to block devices
	threads     int
}

func measure(list []process) (u usage) {
	for _, p := range list {
		u.cpu += p.stat.CPU
		u.threads += p.stat.Threads
		u.memory += memoryOf(p.pid)
		io := fields(fmt.Sprintf("/proc/%d/io", p.pid))
		u.read += io["read_bytes"]
		u.wrote += io["write_bytes"]
	}
	return u
}

// memoryOf is the proportional set size of a process or, where that cannot be read, the resident set size.
func memoryOf(pid int) uint64 {
	if pss := fields(fmt.Sprintf("/proc/%d/smaps_rollup", pid))["Pss"]; pss > 0 {
		return pss << 10
	}
	return fields(fmt.Sprintf("/proc/%d/status", pid))["VmRSS"] << 10
}

// fields reads the numbers of a file of lines "NAME: NUMBER".
func fields(path string) map[string]uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	all := map[string]uint64{}
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(string(line), ":")
		if words := strings.Fields(value); len(words) > 0 {
			if n, err := strconv.ParseUint(words[0], 10, 64); err == nil {
				all[name] = n
			}
		}
	}
	return all
}
