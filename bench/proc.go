package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// helperProcesses are the processes of the tree below root (included) that are not this program: root is the helper,
// somewhere below it is the command, which is us.
func helperProcesses(root int) ([]int, error) {
	children, err := childrenOf()
	if err != nil {
		return nil, err
	}
	var found []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		pid := queue[0]
		queue = append(queue, children[pid]...)
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return nil, err
		}
		// The command's own words follow its path; the helper's line has them at its end.
		if argv := bytes.Split(line, []byte{0}); len(argv) > 1 && string(argv[1]) == "hold" {
			continue
		}
		found = append(found, pid)
	}
	if len(found) == 0 {
		return nil, errors.New("the helper has no processes")
	}
	return found, nil
}

func childrenOf() (map[int][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it ended
		}
		// proc(5): pid (comm) state ppid …; comm may hold anything, so count from its closing parenthesis.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		if ppid, err := strconv.Atoi(fields[1]); err == nil {
			children[ppid] = append(children[ppid], pid)
		}
	}
	return children, nil
}

// rss is a process's resident memory in KiB.
func rss(pid int) (int, error) { return kib(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:") }

// pss is the same with each shared page divided by its users.
func pss(pid int) (int, error) { return kib(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") }

// kib reads the number after name in a file of /proc whose lines are "name number kB".
func kib(path, name string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}
