// Package helper contains what programs need that other programs start as their helpers: it takes over the descriptors the
// caller passes by number, and reports to the caller when the helper is ready.
//
// It has no state and no locks, and imports the standard library and golang.org/x/sys/unix only. Adopt must be called before other
// goroutines open descriptors without close-on-exec.
package helper
