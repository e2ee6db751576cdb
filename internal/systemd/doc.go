// Package systemd speaks the two protocols by which a service manager and a program know of each other: sockets that are
// passed in (sd_listen_fds(3)) and states that are reported (sd_notify(3)). Without a service manager both do nothing.
package systemd
