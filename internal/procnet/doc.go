// Package procnet reads from /proc/PID/net which sockets listen in a network namespace. It imports none of our packages, and its
// functions may be called concurrently.
package procnet
