// Package procnet reads the listening sockets of a network namespace from /proc/PID/net, for the automatic forwarding of their
// ports.
//
// It reads files only, keeps no state, and imports the standard library only.
package procnet
