// Package systemd implements the two protocols between a service manager and a service: socket activation (sd_listen_fds(3)) and
// state notification (sd_notify(3)). Without a service manager there are no sockets, and Notify does nothing.
//
// It keeps no state, has no locks, and imports the standard library and golang.org/x/sys/unix only.
package systemd
