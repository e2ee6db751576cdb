package main

import (
	"fmt"
	"os"
	"strings"
)

// RootlessKit starts newuidmap and newgidmap from PATH. These are set-uid root, which has no effect in the bench's user namespace,
// where root is not mapped. The bench replaces them by links to itself with these names, and writes the one mapping that needs no
// privilege: root inside is the user outside. The network needs no other ids.
const (
	newUIDMap = "newuidmap"
	newGIDMap = "newgidmap"
)

// mapIDs is newuidmap or newgidmap for the process args[0], a pid or "fd:N" for a descriptor of its directory in /proc.
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
	// Without privileges gid_map can be written only after setgroups(2) was denied: user_namespaces(7).
	if err := os.WriteFile(dir+"/setgroups", []byte("deny"), 0); err != nil {
		return err
	}
	return os.WriteFile(dir+"/gid_map", fmt.Appendf(nil, "0 %d 1\n", os.Getgid()), 0)
}
