// Package textlog prints log records as a command's output: warnings in the format of docker run, everything else after the
// program's name, each record on one line, because the terminal may be shared with the command that runs in the sandbox.
//
// # Lock order
//
// The only lock serialises writes to the output and is shared by all handlers derived from one; nothing is locked under it.
//
// # Imports
//
// The standard library.
package textlog
