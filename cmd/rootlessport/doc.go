// Rootlessport is Podman's port helper: it takes no arguments, but a JSON document on standard input. See
// internal/rootlessport.
package main
