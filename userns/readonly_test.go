package userns

import (
	"slices"
	"testing"
)

func TestMountPoints(t *testing.T) {
	text := "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" +
		`36 22 0:32 / /media/my\040disk\134x rw shared:7 master:1 - ext4 /dev/sdb1 rw` + "\n\nshort line\n"
	if got := mountPoints(text); !slices.Equal(got, []string{"/", `/media/my disk\x`}) {
		t.Errorf("%q", got)
	}
}

func TestWithin(t *testing.T) {
	for path, want := range map[string]bool{"/dev": true, "/dev/shm": true, "/device": false, "/": false, "/proc/sys": true} {
		if within(path, stayWritable) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}
