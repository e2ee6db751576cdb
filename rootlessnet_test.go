package rootlessnet_test

import (
	"errors"
	"os"
	"testing"

	"rootlessnet"
)

// TestUsageError: what is wrong with a Config is found before anything is made, and is recognised by the types of this
// package alone.
func TestUsageError(t *testing.T) {
	code, err := rootlessnet.Run(t.Context(), rootlessnet.Config{RuntimeDir: t.TempDir()})
	var wrong *rootlessnet.UsageError
	if code != rootlessnet.ExitFailure || !errors.As(err, &wrong) || wrong.Field != "Argv" {
		t.Errorf("Run: %d, %v", code, err)
	}
	if _, err = rootlessnet.Attach(t.Context(), rootlessnet.Target{}, rootlessnet.Config{}); !errors.As(err, &wrong) || wrong.Field != "Target" {
		t.Errorf("Attach: %v", err)
	}
}

// TestRun starts a command by the public API alone: importing this package is enough for the second start of the program
// inside the namespaces to be recognised.
func TestRun(t *testing.T) {
	runtime := t.TempDir()
	started := 0
	code, err := rootlessnet.Run(t.Context(), rootlessnet.Config{
		Argv: []string{"sh", "-c", "exit 7"}, RuntimeDir: runtime, OnStart: func(rootlessnet.Started) { started++ },
	})
	if err != nil || code != 7 || started != 1 {
		t.Errorf("exit code %d, %v; started %d times", code, err, started)
	}
	if left, _ := os.ReadDir(runtime); len(left) > 0 {
		t.Errorf("left in the runtime directory: %v", left)
	}
}
