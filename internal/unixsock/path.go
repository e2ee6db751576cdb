package unixsock

import (
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// MaxPath is the maximum length in bytes of the path in a unix socket address: the size of sun_path less its final zero (unix(7)).
const MaxPath = 107

// ShortPath returns a path that fits into a socket address: path itself, or else a path through /proc/self/fd that names the same
// file through a descriptor of its directory. It is valid until done is called, which closes the descriptor. The last element of path
// may have about 80 bytes.
func ShortPath(path string) (short string, done func(), err error) {
	if len(path) <= MaxPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(fd), filepath.Base(path)), func() { unix.Close(fd) }, nil
}
