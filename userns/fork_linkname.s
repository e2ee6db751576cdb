// This file is empty; it lets the compiler accept the functions without bodies in fork.go.
