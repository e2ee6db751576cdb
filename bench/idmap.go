package main

import (
	"fmt"
	"os"
	"strings"
)

// RootlessKit starts newuidmap and newgidmap from PATH. They are set-uid root, which means nothing in the bench's user
// namespace, where root is not mapped. So the bench stands in for them, by links with these names, with the one mapping
// that needs no privilege: root inside is the user outside. The network does not ask for more.
const (
	newUIDMap = "newuidmap"
	newGIDMap = "newgidmap"
)

// mapIDs does the work of newuidmap or newgidmap for the process args[0] (newer callers write it "fd:N", an open
// directory of /proc).
func mapIDs(name string, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: %s PID [ID…]", name)
	}
	dir := "/proc/" + args[0]
	if fd, ok := strings.CutPrefix(args[0], "fd:"); ok {
		dir = "/proc/self/fd/" + fd
	}
	if name == newUIDMap {
		return os.WriteFile(dir+"/uid_map", fmt.Appendf(nil, "0 %d 1\n", os.Getuid()), 0)
	}
	// Without privilege groups can only be mapped once they can no longer be dropped: user_namespaces(7).
	if err := os.WriteFile(dir+"/setgroups", []byte("deny"), 0); err != nil {
		return err
	}
	return os.WriteFile(dir+"/gid_map", fmt.Appendf(nil, "0 %d 1\n", os.Getgid()), 0)
}
