// Package signals decides which of the signals that a launcher receives it must pass on to the command it has launched.
//
// # Theory of operation
//
// Launcher and command share a process group, so that a terminal treats the command as if there were no launcher. A signal that the
// terminal sends to its foreground process group has reached the command as well; one that another process sent to the launcher has
// not. Go does not report the sender of a signal, so FromTerminal checks whether the launcher's process group is the terminal's
// foreground group.
//
// A stop by the terminal (Ctrl-Z) stops launcher and command alike as long as they share a group. A command that makes a group of its
// own, as a shell does, is stopped and continued with its launcher by StopJob. SIGTSTP to the launcher alone is for the command, like
// other signals (CatchStop).
//
// # Limits
//
// A SIGINT, SIGQUIT or SIGWINCH that a process sends to the launcher alone, while the launcher is in the foreground of its
// terminal, is mistaken for the terminal's and not passed on.
//
// # Imports
//
// The standard library and golang.org/x/sys/unix. There are no locks and no state.
package signals
