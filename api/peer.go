package api

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// checkPeer returns nil if the process at the other end of a connection may use the API, and otherwise the reason why not.
// The package documentation describes which peers may.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peerErr = checkPeerFD(int(fd)) }); err != nil {
		return err
	}
	return peerErr
}

func checkPeerFD(fd int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("cannot read the peer's credentials: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("uid %d is not the owner of the sandbox", cred.Uid)
	}
	// The kernel reports pid 0 for a peer that our pid namespace does not contain.
	if cred.Pid <= 0 {
		return errors.New("peer is in another pid namespace")
	}
	proc := "/proc/" + strconv.Itoa(int(cred.Pid))
	same, err := sameUserNS(proc)
	if err == nil && !same {
		same, err = inInitialUserNS(proc)
	}
	if err != nil {
		return fmt.Errorf("cannot determine the peer's user namespace: %w", err)
	}
	if !same {
		return errors.New("peer is in another user namespace")
	}
	return peerRuns(fd)
}

// sameUserNS reports whether the process with that directory in /proc is in our user namespace.
//
// The kernel lets only privileged processes read the namespaces of a process that is not dumpable or that has more
// capabilities than the reader (ptrace(2), access mode checking). The uid map of such a process can always be read, and is
// sufficient: the kernel shows the map of the reader's own namespace in ids of the parent namespace, and every other map in
// ids of the reader's namespace. Another namespace with the same map as ours would have to map all ids onto themselves,
// which only root can set up (user_namespaces(7)).
func sameUserNS(proc string) (bool, error) {
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return false, err
	}
	theirs, err := os.Readlink(proc + "/ns/user")
	if err == nil {
		return ours == theirs, nil
	}
	if !errors.Is(err, fs.ErrPermission) {
		return false, err
	}
	return sameUIDMap(proc)
}

// sameUIDMap reports whether the uid map of the process with that directory in /proc reads the same as ours.
func sameUIDMap(proc string) (bool, error) {
	ours, theirs, err := uidMaps(proc)
	return err == nil && len(ours) > 0 && bytes.Equal(ours, theirs), err
}

// uidMaps returns the uid maps of this process and of the process with that directory in /proc, as this process sees them.
func uidMaps(proc string) (ours, theirs []byte, err error) {
	if ours, err = os.ReadFile("/proc/self/uid_map"); err != nil {
		return nil, nil, err
	}
	theirs, err = os.ReadFile(proc + "/uid_map")
	return ours, theirs, err
}

// inInitialUserNS reports whether the process is in the initial user namespace and we are not. That is the case of a helper
// that runs in the user namespace of a rootless container and serves the user outside of it. The initial namespace maps all
// ids, that is 2^32-1 of them, and a namespace maps no more ids than its parent: as ours does not map all ids, no namespace
// below or beside it can, unless real root made it.
func inInitialUserNS(proc string) (bool, error) {
	ours, theirs, err := uidMaps(proc)
	return err == nil && mapsAll(theirs) && !mapsAll(ours), err
}

// mapsAll reports whether a uid_map maps all ids in one line (user_namespaces(7)): first id inside, first id outside, count.
func mapsAll(text []byte) bool {
	words := bytes.Fields(text)
	return len(words) == 3 && string(words[0]) == "0" && string(words[2]) == "4294967295"
}

// peerRuns checks that the /proc directory that was read belongs to the peer: if the peer still runs now, its pid
// cannot have been reused before. Kernels before 6.5 have no SO_PEERPIDFD, and the check is omitted.
func peerRuns(fd int) error {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EINVAL):
		return nil
	case err != nil:
		return fmt.Errorf("peer has ended: %w", err)
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return fmt.Errorf("peer has ended: %w", err)
	}
	return nil
}
