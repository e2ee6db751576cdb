package main

import (
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestInheritedDescriptorsAreClosed starts a process with an additional pipe and checks that closeInherited closes it while the process
// runs.
func TestInheritedDescriptorsAreClosed(t *testing.T) {
	if os.Getenv("INHERITED_CHILD") != "" {
		closeInherited()
		_, _ = io.Copy(io.Discard, os.Stdin) // until the parent is done
		os.Exit(0)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestInheritedDescriptorsAreClosed$")
	cmd.Env = append(os.Environ(), "INHERITED_CHILD=1")
	cmd.ExtraFiles = []*os.File{w}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the inherited pipe is still open: %v", err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
