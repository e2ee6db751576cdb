// Rootless-net is the management side of rootless-run: it lists running sandboxes, describes them, publishes and
// closes their ports, runs commands in them, and says what is missing on a machine.
//
// It finds sandboxes by their state directories and asks them through their control sockets. What it prints looks
// like docker's, with -o json for programs.
package main
