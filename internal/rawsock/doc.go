// Package rawsock contains the socket calls that are made for every connection, as raw system calls on non-blocking TCP sockets.
//
// # Why
//
// golang.org/x/sys queries the protocol of a socket each time it reads an address of one, and announces every call to Go's
// scheduler although none of these calls blocks. If an announced call takes longer than 20 µs, the scheduler gives the P to
// another thread, which must be woken for that. A connect that completes the whole handshake with a peer on the same machine
// does take longer.
//
// # Limits
//
// Callers must pass non-blocking sockets; otherwise a call would block a P. IPv6 scopes (zones) are supported by Addr only.
//
// # Imports
//
// The standard library and golang.org/x/sys/unix. There are no locks; all functions may be called from any goroutine.
package rawsock
