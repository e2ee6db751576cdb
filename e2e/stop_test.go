package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStop: stop sends SIGTERM to a command, and SIGKILL when it has not ended after the timeout.
func TestStop(t *testing.T) {
	l := newLab(t)
	said := filepath.Join(t.TempDir(), "said")
	up := func(name string) {
		t.Helper()
		eventually(t, 5*time.Second, func() string {
			if _, err := os.Stat(said + name); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	for name, script := range map[string]string{
		"polite": "trap 'echo bye > " + said + "; exit' TERM; > " + said + "polite; while :; do sleep .1; done",
		"deaf":   "trap '' TERM; > " + said + "deaf; while :; do sleep .1; done",
	} {
		if r := l.once([]string{"-d", "--name", name}, "sh", "-c", script); r.code != 0 {
			t.Fatalf("%s: exit %d: %s", name, r.code, r.stderr)
		}
		up(name)
	}
	if got := l.manage("stop", "polite"); got != "polite\n" {
		t.Errorf("stop printed %q", got)
	}
	if text, err := os.ReadFile(said); string(text) != "bye\n" {
		t.Errorf("the command got no SIGTERM: %q, %v", text, err)
	}
	begin := time.Now()
	l.manage("stop", "-t", "1", "deaf")
	if took := time.Since(begin); took < time.Second || took > 8*time.Second {
		t.Errorf("stop took %v", took)
	}
	if got := l.manage("ps"); strings.Contains(got, "polite") || strings.Contains(got, "deaf") {
		t.Errorf("still listed:\n%s", got)
	}
	if r := l.finish(l.command("rootless-net", "stop", "nobody")); r.code == 0 || !strings.Contains(r.stderr, "nobody") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	l.nothingLeft(time.Second)
}
