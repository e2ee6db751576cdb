// Rootless-net manages sandboxes: it lists and describes them, publishes and closes their ports, runs commands in them, prints their
// output, waits for them, stops them, and removes what is kept of those that have ended. It also connects network namespaces that other programs made (attach), installs the drop-in programs,
// and checks what a machine lacks (doctor).
//
// # Theory of operation
//
// It finds a sandbox by its state directory (internal/state) and sends requests to its control socket (package api). It has no
// other access to a supervisor, with two exceptions: stop sends it signals, and exec enters the namespaces of its sandbox
// (package userns). logs, wait, rm, prune and events read the state directory only, and top and stats /proc. attach and doctor need no
// running sandbox: attach calls the root package, doctor internal/doctor. The output has the
// form of docker's, or is JSON with -o json.
//
// # Limits and failures
//
// A request takes at most requestTimeout, except that port add and port rm wait for the sandbox. ps describes a sandbox that does
// not answer by its record. The exit status is 0; 1 after a failure; 125 after a mistake on the command line; or that of
// the command that exec has run.
package main
