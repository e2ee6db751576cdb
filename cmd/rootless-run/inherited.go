package main

import (
	"os"

	"rootlessnet/internal/helper"
)

// closeInherited closes the descriptors that the caller left open by accident, except for the sockets that a service manager passed
// and the pipes of a detached process.
func closeInherited() {
	first := firstFD + listenFDs()
	if os.Getenv(detachedVar) != "" {
		first += 2
	}
	helper.CloseInherited(func(fd int) bool { return fd < first })
}
