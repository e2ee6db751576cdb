// Rootless-run runs a command with a network of its own, without privileges.
//
// It translates its command line into a rootlessnet.Config and calls rootlessnet.Run; the library checks the values and does
// everything else.
//
// # Exit status
//
// That of the command; 125 after a failure of rootless-run or of the library, 126 if the command cannot be executed, 127 if it was
// not found, and 128+n if signal n ended it.
//
// # Detached
//
// With --detach the program starts itself again in a new session, with the same arguments and two pipes. The background process
// writes its messages into the first pipe, which the foreground process copies to the caller's standard error, and the id of the
// started sandbox into the second. The foreground process exits with 0 when it has the id, or with the exit code of the background
// process if that ends without one. The background process does not inherit the caller's standard streams, so that
// $(rootless-run --detach …) returns while it runs.
package main
