package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// The sandbox's TCP connections end at the stack or at a socket of ours in the same machine: nothing is lost between the two
// and nothing is slow, so that congestion control inside has nothing to do. Reno does the least work; one that paces (BBR)
// takes a third of the throughput. The host's own sockets, which cross the real network, use the host's congestion control.
const (
	sysctlCongestion = "net/ipv4/tcp_congestion_control"
	insideCongestion = "reno"
)

// sysctl is one setting; name is its path below /proc/sys.
type sysctl struct {
	name, value string
	optional    bool // no error where the kernel does not have it or refuses the value
}

// writeSysctl sets a sysctl of the calling thread's network namespace: /proc/sys/net shows the namespace of the thread that
// opens the file, whichever /proc it is.
func writeSysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/"+name, []byte(value), 0)
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err // the caller names the sysctl
	}
	return err
}

// changeSysctls sets those of the list in the calling thread's namespace. u gets the steps back to the old values, also
// when there is an error.
func changeSysctls(list []sysctl, u *undo) error {
	for _, c := range list {
		old, err := os.ReadFile("/proc/sys/" + c.name)
		if err == nil {
			err = writeSysctl(c.name, c.value)
		}
		if err != nil && !c.optional {
			return fmt.Errorf("set %s: %w", c.name, err)
		}
		if err == nil {
			u.add(func() { _ = writeSysctl(c.name, strings.TrimSpace(string(old))) })
		}
	}
	return nil
}
