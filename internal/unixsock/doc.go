// Package unixsock makes sockets reachable whose path is longer than a unix socket address. It imports none of our packages, and its
// functions may be called concurrently.
package unixsock
