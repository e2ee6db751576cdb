package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// FirstFD is the number of the first passed descriptor (SD_LISTEN_FDS_START).
const FirstFD = 3

// ListenFDs returns how many sockets the service manager has passed to this process (LISTEN_PID, LISTEN_FDS).
func ListenFDs() int {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return 0
	}
	return max(n, 0)
}

// Files returns the n descriptors from FirstFD on as files, and sets close-on-exec so that programs started later do not
// inherit them.
func Files(n int) ([]*os.File, error) {
	var files []*os.File
	for fd := FirstFD; fd < FirstFD+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("LISTEN_FDS: descriptor %d: %w", fd, err)
		}
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "listener"))
	}
	return files, nil
}

// Notify sends a state, consisting of lines such as "READY=1", to the service manager. It does nothing if NOTIFY_SOCKET is not set.
func Notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	// Like the protocol, package net takes an initial @ for the abstract namespace.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(state))
		_ = c.Close()
	}
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
