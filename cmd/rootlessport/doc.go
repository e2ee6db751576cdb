// Rootlessport is a drop-in replacement for Podman's port helper of that name. It takes no arguments, but a JSON document on standard
// input; package internal/rootlessport describes the protocol and opens the ports.
//
// It runs until the exit descriptor of the document reaches its end, or until SIGTERM, SIGINT or SIGHUP, and then exits with 0.
// After an error before the ports are open it writes the error to standard output, as Podman expects, and exits with 1.
package main
