// Package watch tells when something outside of this process has ended: a process, the other end of a descriptor, a
// mount.
//
// A Watch is one goroutine and the descriptors it needs; both are gone when Close returns. A descriptor that is watched
// is not touched: it may share its description, flags included, with a stranger, so that it is looked at by way of an
// epoll instance of our own.
//
// # Limits
//
// A path on a file system that reports nothing (procfs), or that is unmounted, is noticed within PathInterval.
package watch
