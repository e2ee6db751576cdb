// Package terminal gives a command a pseudo terminal of its own, and copies between it and the caller's files.
//
// # Theory of operation
//
// The caller opens the terminal, starts the command with the slave side as its standard streams and controlling terminal
// (userns.Command.Terminal), and relays: one goroutine copies what the command prints, another one types what is read of the caller's
// input. If that is a terminal it is in raw mode meanwhile, so that the command's terminal interprets every key, and changes of its size are
// passed on.
//
// # Limits and failures
//
// Output that the command has left in its terminal is copied for a second after its end at most: a process elsewhere may have opened the
// terminal by its path. A closed output does not stop the command. If the caller is killed, its terminal stays in raw mode.
//
// # Imports
//
// The standard library, golang.org/x/sys/unix, golang.org/x/term, and internal/signals. There are no locks.
package terminal
