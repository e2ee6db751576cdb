// Package signals decides which of the signals a launcher catches are for the command it has launched.
//
// # Theory of operation
//
// Launcher and command share a process group, so that a terminal acts on the command as if there were no launcher.
// What the terminal sends to its foreground group the command has got already; what another process sent to the
// launcher alone it has not. The signal itself does not tell the two apart where Go can see it, so the process group
// in the terminal's foreground is looked at.
//
// # Limits
//
// A SIGINT, SIGQUIT or SIGWINCH that a process sends to the launcher alone, while the launcher is in the foreground of
// its terminal, is taken for the terminal's.
package signals
