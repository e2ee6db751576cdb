package main

import (
	"os"

	"rootlessnet"
)

// version is set at link time.
var version = "unknown"

func main() {
	closeInherited()
	os.Exit(program{run: rootlessnet.Run, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}.main(os.Args[1:]))
}
