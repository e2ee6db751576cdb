// Package watch reports when something outside this process has ended: another process, the other end of a descriptor, or a
// mount.
//
// # Theory of operation
//
// A Watch has one or two goroutines and at most one descriptor of its own, which have ended when Close has returned. File adds
// the watched descriptor to an epoll instance and lets Go's poller wait for that instance. The watched descriptor itself is not
// changed, because it may share its open file description, including the O_NONBLOCK flag, with another process. Path combines
// inotify events of the directory with a check at intervals.
//
// # Limits
//
// A path on a file system without inotify events (procfs), or one that is unmounted, is noticed within PathInterval.
//
// # Imports
//
// The standard library and golang.org/x/sys/unix. There are no locks.
package watch
