package main

import (
	"context"
	"os"

	"rootlessnet/internal/doctor"
	"rootlessnet/userns"
)

// version is set by the linker (-X main.version).
var version = "unknown"

func main() {
	userns.Init() // does not return in the child process that enters a sandbox for exec
	if doctor.IsProbe() {
		doctor.ProbeMain()
		return
	}
	p := program{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, enter: enter}
	os.Exit(p.main(context.Background(), os.Args[1:]))
}
