package helper

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestAdopt passes three pipes to a process and names two of them: the process reports ready on one, ends when the other is
// closed, and closes the third.
func TestAdopt(t *testing.T) {
	if os.Getenv("ADOPT_CHILD") != "" {
		files, err := Adopt(4, -1, 3)
		if err != nil || files[1] != nil {
			os.Exit(10)
		}
		if err := Ready(files[0]); err != nil {
			os.Exit(11)
		}
		_, _ = io.Copy(io.Discard, files[2])
		os.Exit(0)
	}
	exitR, exitW := pipe(t)
	readyR, readyW := pipe(t)
	otherR, otherW := pipe(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAdopt$")
	cmd.Env = append(os.Environ(), "ADOPT_CHILD=1")
	cmd.ExtraFiles = []*os.File{exitR, readyW, otherW}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readyW.Close()
	otherW.Close()
	for _, r := range []*os.File{readyR, otherR} {
		_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	}
	if got, err := io.ReadAll(readyR); err != nil || !bytes.Equal(got, []byte("1")) {
		t.Errorf("the ready descriptor gave %q, %v", got, err)
	}
	if _, err := otherR.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe that was not named is still open: %v", err)
	}
	exitW.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestAdoptClosed(t *testing.T) {
	r, w := pipe(t)
	fd := int(r.Fd())
	r.Close()
	w.Close()
	if os.Getenv("ADOPT_CHILD") == "" {
		if _, err := Adopt(fd); err == nil {
			t.Error("Adopt accepted a closed descriptor")
		}
	}
}
