// Package listenwatch keeps a set of forwarded ports equal to the set of ports that servers listen on, by polling. The kernel
// announces neither bind(2) nor listen(2) to other processes, so reading /proc/PID/net at an interval (package procnet) is all
// there is.
//
// A port of the set is in one of three states: open, failed (Open returned an error; it is tried again once the server has
// ended and listens again), or unknown. A port that Open answers with [ErrLater] stays unknown.
//
// The package imports none of our packages, holds no lock and starts no goroutine: a Watcher belongs to the goroutine that
// calls Poll or Run.
package listenwatch
