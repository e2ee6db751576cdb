package subid

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const text = "alice:100000:65536\nbob:200000:65536\n# alice:1:1\nalice:300000:10\n1001:400000:5\nalice:x:1\nalice:5\nalice:1:0\n" +
	"alice:4294967295:2\nalice:5:6:7\n:1:1\n\n"

func TestParse(t *testing.T) {
	got, err := parse(strings.NewReader(text), "alice", 1001, 10)
	if want := []Range{{100000, 65536}, {300000, 10}, {400000, 5}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, _ := parse(strings.NewReader(text), "alice", 1001, 2); len(got) != 2 {
		t.Errorf("a limit of 2 gives %v", got)
	}
	if got, _ := parse(strings.NewReader(text), "", 7, 10); len(got) != 0 {
		t.Errorf("a line without a name matched a user without one: %v", got)
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path, "bob", 1002, 10); err != nil || !slices.Equal(got, []Range{{200000, 65536}}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := Read(path, "carol", 1003, 10); err == nil || !strings.HasSuffix(err.Error(), "subuid has no range for carol") {
		t.Errorf("a user without ranges: %v", err)
	}
	if _, err := Read(path+"x", "bob", 1002, 10); !os.IsNotExist(err) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("alice:100000:65536\n1001:1:1")
	f.Add("alice:4294967295:4294967295")
	f.Fuzz(func(t *testing.T, s string) {
		ranges, _ := parse(strings.NewReader(s), "alice", 1001, 10)
		for _, r := range ranges {
			if r.Count == 0 || uint64(r.First)+uint64(r.Count) > 1<<32 {
				t.Errorf("range %+v", r)
			}
		}
	})
}
