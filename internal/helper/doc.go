// Package helper holds what programs have in common that other programs start as their helpers: the descriptors they are
// given by number, the byte that says they are ready, and the descriptor whose end is theirs.
package helper
