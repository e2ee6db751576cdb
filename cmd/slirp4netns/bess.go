package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/watch"
)

// acceptVM waits until a virtual machine connects to the unix socket at path, and returns the connection. Each packet of it is one
// Ethernet frame. The file is nil if an event on ended or a signal came first. The socket accepts one machine only; its path is
// removed before acceptVM returns.
func acceptVM(path string, ended <-chan struct{}, signals <-chan os.Signal) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("listen for a virtual machine on %s: %w", path, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fail(err)
	}
	l := os.NewFile(uintptr(fd), path)
	defer l.Close()
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		_ = os.Remove(path)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fail(err)
	}
	defer os.Remove(path)
	if err := unix.Listen(fd, 1); err != nil {
		return fail(err)
	}
	for {
		w, err := watch.File(l)
		if err != nil {
			return fail(err)
		}
		select {
		case <-w.C():
			w.Close()
		case <-ended:
			w.Close()
			return nil, nil
		case <-signals:
			w.Close()
			return nil, nil
		}
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case err == nil:
			return os.NewFile(uintptr(conn), path), nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNABORTED):
			return fail(err)
		}
	}
}
