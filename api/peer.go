package api

import (
	"errors"
	"fmt"
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
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return err
	}
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(int(cred.Pid)) + "/ns/user")
	if err != nil {
		return fmt.Errorf("cannot tell the peer's user namespace: %w", err)
	}
	if ours != theirs {
		return errors.New("peer is in another user namespace")
	}
	return stillAlive(fd)
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
