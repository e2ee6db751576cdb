package callers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"rootlessnet/internal/nettest/skip"
)

// TestUserNSAuto: with ranges in /etc/subuid the command is root of a whole range of users, has the same network as without,
// and can give files to users of the range.
func TestUserNSAuto(t *testing.T) {
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip.Missing(t, "%v", err)
		}
	}
	if text, err := os.ReadFile("/etc/subuid"); err != nil || len(text) == 0 {
		skip.Missing(t, "no ranges in /etc/subuid")
	}
	script := `id -u; cat /proc/self/uid_map | wc -l
touch mine && chown 1000:1000 mine && stat -c %u:%g mine
ls /sys/class/net | sort | tr '\n' ' '
getent hosts host.docker.internal >/dev/null && echo named`
	cmd := exec.Command(filepath.Join(bins, "rootless-run"), "--userns", "auto", "--", "sh", "-ec", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, want := strings.Fields(string(out)), "0 2 1000:1000 eth0 lo named"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", strings.Join(got, " "), want)
	}
}
