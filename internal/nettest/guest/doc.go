// Package guest holds what end-to-end tests do from inside a sandbox. The test binary is also the command that runs
// there: Main, called first, takes over when the program was started as
//
//	PROGRAM guest OPERATION [ARG...]   one operation
//	PROGRAM guest agent                operations read from stdin, one a line, until EOF
//
// An operation prints its result on one line. The agent prints, for each line read, one line: "ok RESULT" or
// "err TEXT"; it says "ok agent" first, when it runs. Servers go on in the background of the agent; what they print is
// their address only.
//
// Network failures are results, not errors: the operation prints the name of the errno, such as ECONNREFUSED, since the
// tests are about which one came through.
package guest
