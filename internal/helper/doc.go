// Package helper contains what long-lived background processes need: it takes over the descriptors that the caller passes by
// number, closes those that the caller left open by accident, and reports to the caller when the process is ready.
//
// It has no state and no locks, and imports the standard library and golang.org/x/sys/unix only. Adopt and CloseInherited must
// be called before other goroutines open descriptors without close-on-exec.
package helper
