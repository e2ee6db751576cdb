// Package rawsock has the calls that every connection makes, as raw system calls on non-blocking sockets.
//
// x/sys asks for the protocol of a socket each time it reads an address of one, and announces to the scheduler what cannot
// block. The scheduler's patience with an announced call is 20 µs, and a connect in which the whole handshake with a
// neighbour takes place lasts longer: the slot would go to another thread, which has to be woken, in the middle of each
// dial.
package rawsock
