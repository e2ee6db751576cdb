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

// checkPeer says why the other end of a connection is not to be heard, or returns nil.
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
		return fmt.Errorf("who are you: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("uid %d is not the owner", cred.Uid)
	}
	// A pid of 0 is a peer that our pid namespace does not contain.
	if cred.Pid <= 0 {
		return errors.New("peer is in another pid namespace")
	}
	proc := "/proc/" + strconv.Itoa(int(cred.Pid))
	same, err := sameUserNS(proc)
	if err == nil && !same {
		same, err = aboveUs(proc)
	}
	if err != nil {
		return fmt.Errorf("cannot tell the peer's user namespace: %w", err)
	}
	if !same {
		return errors.New("peer is in another user namespace")
	}
	return stillAlive(fd)
}

// sameUserNS says whether the process with that directory in /proc is in our user namespace.
//
// The kernel shows the namespaces of an undumpable process, or of one with more capabilities than ours, to nobody but
// the privileged (ptrace(2), access mode checking). Its uid map can always be read, and answers as well: the map of our
// own namespace is shown in ids of the parent of our namespace, and that of any other in ids of our own. A map equal to ours
// would be one of all ids onto themselves, which only root can make (user_namespaces(7)).
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

func sameUIDMap(proc string) (bool, error) {
	ours, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	theirs, err := os.ReadFile(proc + "/uid_map")
	if err != nil {
		return false, err
	}
	return len(ours) > 0 && bytes.Equal(ours, theirs), nil
}

// aboveUs says whether the process is in the first user namespace and we are not, as when the helper of a rootless
// container runs in the container's: the user outside is its master. All ids are mapped in the first one, count 2^32-1,
// and a namespace maps no more than its parent does: ours does not map all of them, so none below or beside it can, unless
// real root made it.
func aboveUs(proc string) (bool, error) {
	ours, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	theirs, err := os.ReadFile(proc + "/uid_map")
	if err != nil {
		return false, err
	}
	return mapsAll(theirs) && !mapsAll(ours), nil
}

// mapsAll reads a uid_map (user_namespaces(7)): first id inside, first id outside, count.
func mapsAll(text []byte) bool {
	words := bytes.Fields(text)
	return len(words) == 3 && string(words[0]) == "0" && string(words[2]) == "4294967295"
}

// stillAlive makes sure that the pid looked at was that of the peer: it was if the peer has not ended by now. Kernels
// before 6.5 cannot tell.
func stillAlive(fd int) error {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EINVAL):
		return nil
	case err != nil:
		return fmt.Errorf("peer is gone: %w", err)
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return fmt.Errorf("peer is gone: %w", err)
	}
	return nil
}
