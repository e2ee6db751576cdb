package userns

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMirrorOfEtc: /etc inside has the host's entries, except for ours, with the host's contents and kinds. It is not writable, our
// files are.
func TestMirrorOfEtc(t *testing.T) {
	files := Files{ResolvConf: []byte("nameserver 10.0.2.3\n"), Hosts: []byte("1.2.3.4 first\n"), Hostname: "box"}
	ours := []string{resolvConf, hostsFile, hostnameFile, nsswitch}
	entries, err := os.ReadDir(etc)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, e := range entries {
		if !slices.Contains(ours, e.Name()) {
			want = append(want, fmt.Sprintf("%s %s", e.Name(), e.Type()))
		}
	}
	for _, mode := range []IDMap{IDMapRoot, IDMapKeepID} {
		out, code := run(t, start(t, Config{Network: NetworkNone, IDMap: mode, Files: files}),
			`cat /etc/hostname /etc/resolv.conf /etc/hosts; cmp /etc/passwd /etc/.host/passwd || exit 1
for f in resolv.conf hosts hostname; do echo "# $f" >> /etc/$f || exit 2; done
touch /etc/of-the-sandbox 2>/dev/null && exit 3
rm -f /etc/resolv.conf 2>/dev/null && exit 4
grep -c ' /etc[^ ]* ' /proc/mounts >/dev/null || exit 5
grep -q '^hosts:.*\(resolve\|mdns\)' /etc/nsswitch.conf 2>/dev/null && exit 6
exit 0`)
		if code != 0 || out != "box\nnameserver 10.0.2.3\n1.2.3.4 first" {
			t.Errorf("%s: exit %d, %q", mode, code, out)
		}
		out, code = run(t, start(t, Config{Network: NetworkNone, IDMap: mode, Files: files}), `cd /etc; for f in * .[!.]*; do
if [ -L "$f" ]; then echo "$f L---------"; elif [ -d "$f" ]; then echo "$f d---------"; elif [ -f "$f" ]; then echo "$f ----------"; else echo "$f other"; fi; done`)
		have := strings.Split(strings.TrimSpace(out), "\n")
		have = slices.DeleteFunc(have, func(line string) bool {
			name, _, _ := strings.Cut(line, " ")
			return name == hostEntry || slices.Contains(ours, name)
		})
		slices.Sort(have)
		slices.Sort(want)
		if code != 0 || !slices.Equal(have, want) {
			t.Errorf("%s: exit %d, entries\n%s\nwant\n%s", mode, code, strings.Join(have, "\n"), strings.Join(want, "\n"))
		}
	}
	if b, _ := os.ReadFile(filepath.Join(etc, hostsFile)); strings.Contains(string(b), "# hosts") {
		t.Error("the host's file was written")
	}
}

// TestNoMirrorWithoutFiles: a sandbox without files of its own has the host's /etc itself.
func TestNoMirrorWithoutFiles(t *testing.T) {
	if out, code := run(t, start(t, Config{Network: NetworkHost}), `test ! -e /etc/.host || exit 1; stat -c %i /etc`); code != 0 {
		t.Errorf("exit %d, %q", code, out)
	}
}
