// Package textlog prints log records the way people expect of a command: warnings as docker run prints them, everything
// else behind the program's name, one record on one line, since the line may be on somebody else's terminal.
package textlog
