package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

func okf(format string, a ...any) finding {
	return finding{Status: OK, Detail: fmt.Sprintf(format, a...)}
}

// failed turns an error of a try into a finding: who is refused is denied, all else is missing.
func failed(what string, err error) finding {
	f := finding{Status: Missing, Detail: fmt.Sprintf("%s: %v", what, errText(err))}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		f.Status = Denied
	case errors.Is(err, syscall.ENOSPC): // so clone(2) and unshare(2) tell of a user.max_*_namespaces
		f.Status, f.Detail = Denied, what+": a limit is reached"
	}
	return f
}

// errText is the errno's own words where there is one: the path and the call are in the detail already.
func errText(err error) string {
	var en syscall.Errno
	if errors.As(err, &en) {
		return en.Error()
	}
	return err.Error()
}

// sysctl reads /proc/sys/<path with slashes>; "" when it is not there.
func sysctl(path string) string {
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// selfStatus returns a field of the thread's /proc status, "" when there is none.
func selfStatus(field string) string {
	b, _ := os.ReadFile("/proc/thread-self/status")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
