package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// okf returns the finding of a check that works.
func okf(format string, a ...any) finding {
	return finding{Status: OK, Detail: fmt.Sprintf(format, a...)}
}

// failed returns the finding for an error: Denied if permission or a limit is the reason, Missing otherwise.
func failed(what string, err error) finding {
	f := finding{Status: Missing, Detail: fmt.Sprintf("%s: %v", what, errText(err))}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		f.Status = Denied
	case errors.Is(err, syscall.ENOSPC): // of clone(2) and unshare(2): a limit user.max_*_namespaces is reached
		f.Status, f.Detail = Denied, what+": a limit is reached"
	}
	return f
}

// errText returns the text of the errno if err wraps one: the finding names the path and the system call already.
func errText(err error) string {
	var en syscall.Errno
	if errors.As(err, &en) {
		return en.Error()
	}
	return err.Error()
}

// sysctl returns the value of /proc/sys/path, "" if it cannot be read.
func sysctl(path string) string {
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// selfStatus returns a field of /proc/thread-self/status, "" if there is none.
func selfStatus(field string) string {
	b, _ := os.ReadFile("/proc/thread-self/status")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
