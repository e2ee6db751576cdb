package subid

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Range is the range of the ids First to First+Count-1. Count is not 0, and no id exceeds 32 bits.
type Range struct{ First, Count uint32 }

// Read returns the ranges of a user in the file at path (/etc/subuid or /etc/subgid), at most limit of them. name is the user's name,
// "" if unknown. It returns an error if there are none.
func Read(path, name string, uid, limit int) ([]Range, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ranges, err := parse(f, name, uid, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(ranges) == 0 {
		return nil, fmt.Errorf("%s has no range for %s", path, name)
	}
	return ranges, nil
}

// parse parses the text of a file: lines of the form user:first:count, with the user by name or by uid. Lines of another form are
// skipped, as newuidmap does.
func parse(r io.Reader, name string, uid, limit int) ([]Range, error) {
	var ranges []Range
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(ranges) < limit {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) != 3 || fields[0] == "" || fields[0] != name && fields[0] != strconv.Itoa(uid) {
			continue
		}
		first, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || first+count > 1<<32 {
			continue
		}
		ranges = append(ranges, Range{uint32(first), uint32(count)})
	}
	return ranges, lines.Err()
}
