package rawsock_test

import (
	"io"
	"os"
	"testing"
	"time"

	"rootlessnet/internal/rawsock"
)

// TestCloseLater: the file is closed for the caller at once, and freed soon.
func TestCloseLater(t *testing.T) {
	for range 20 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := rawsock.CloseLater(int(w.Fd()), w.Close); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte{1}); err == nil {
			t.Error("the file can still be written")
		}
		if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the pipe's other end reads %v, want the end of the file", err)
		}
		r.Close()
	}
}
