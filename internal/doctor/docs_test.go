package doctor

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"rootlessnet/internal/nettest/skip"
)

// TestManual: the manual describes every check, and has a section for each group.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../../docs/rootless-net-doctor.1")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		skip.Missing(t, "the source tree cannot be read from here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range catalog() {
		if !strings.Contains(string(b), c.Name) {
			t.Errorf("the manual does not name %s", c.Name)
		}
		if !strings.Contains(string(b), ".SS "+c.Group+"\n") {
			t.Errorf("the manual has no section %q", c.Group)
		}
	}
}
