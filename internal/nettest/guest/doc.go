// Package guest holds what end-to-end tests do from inside a sandbox, a container or another network namespace. The test
// binary is also the program that runs there: Main, called first in TestMain, does not return when the program was started as
//
//	PROGRAM guest OPERATION JSON   runs one operation, prints its reply and exits
//	PROGRAM guest agent            runs the operations that are read from stdin, one a line, until the end of the input
//
// # Protocol
//
// An operation is a Go type of this package with a method run, such as Connect: its exported fields are the arguments, and
// the result of run is the result. Both cross the process boundary as JSON; protocol.go holds the encoding and the decoding
// for both sides. Tests build a command line with Command and read the reply with Decode, or
// send the request to an agent with Do; either returns the result's type. A test that uses an operation that does not exist does
// not compile; an operation that is missing from the table in operations.go fails at its first use.
//
// The agent prints one reply for each request, and one before the first request when it runs. Servers go on in the
// background of the agent; the result of such an operation is the address that the server listens on.
//
// A network failure is a result, an Outcome, and not an error of the operation: the tests are about which one came
// through. Most operations on a TCP connection or a UDP socket have a method On as well, for a test that has opened the
// connection itself, outside.
package guest
