package sandbox

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestSignalsBeforeTheCommand: before the command starts, SIGTERM cancels the preparation, and other signals are kept for the
// command.
func TestSignalsBeforeTheCommand(t *testing.T) {
	ch := make(chan os.Signal)
	s := commandSignals{in: ch}
	ctx, cancel := context.WithCancel(t.Context())
	stop := s.keep(cancel)
	for _, sig := range []os.Signal{syscall.SIGUSR1, syscall.SIGWINCH, syscall.SIGUSR1} {
		ch <- sig
	}
	if ctx.Err() != nil {
		t.Error("SIGUSR1 or SIGWINCH ended it")
	}
	ch <- syscall.SIGTERM
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Error("SIGTERM did not end it")
	}
	stop()
	stop()
	if got := fmt.Sprint(s.kept); got != "[user defined signal 1 window changed]" {
		t.Error("kept:", got)
	}
	select {
	case ch <- syscall.SIGTERM:
		t.Error("taken after stop")
	case <-time.After(10 * time.Millisecond):
	}
}
