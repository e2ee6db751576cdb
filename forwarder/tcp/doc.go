// Package tcp is the stack path for TCP: it joins connections that end in the userspace stack with sockets of the host.
//
// # Theory of operation
//
// A connection that the guest opens is decided, takes a share of the attempts, is dialled, and only then accepted. A client of
// a published port is connected to the guest from the client's own address. Then two goroutines move bytes, one for each
// direction (pump.go):
//
//   - guest to host: netstack's buffers are written to the socket without a copy, under the endpoint's lock, which is why
//     that write never waits;
//   - host to guest: small exchanges by one read into a pooled buffer, bulk from the socket straight into netstack's memory,
//     one frame at a time. An idle connection holds no buffer.
//
// # States of a connection
//
// Both directions open; one ended by FIN, which has been passed on, while the other goes on (with keep-alive, because a side
// that waits and one that has vanished look the same); ended. A reset or failure of one side resets the other at once,
// whatever either direction is waiting for: the guest's failure wakes the waits on the socket, and while a direction waits for
// the guest a goroutine watches the socket.
//
// # Goroutines
//
// HandleTCP runs on the goroutine that netstack made for the SYN, and ends with the connection; the other direction has a
// goroutine of its own. Path.Close ends all of them and waits for them.
//
// # Limits
//
// The limits of a stack.Conn. A panic in a connection ends that connection only.
package tcp
