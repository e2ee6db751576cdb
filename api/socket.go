package api

import (
	"context"
	"net"
	"os"

	"rootlessnet/internal/unixsock"
)

// Listen makes a socket at path that only our user can connect to. Closing the listener leaves the file in place: the owner
// of the directory removes it together with the directory.
func Listen(path string) (*net.UnixListener, error) {
	short, done, err := unixsock.ShortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// dial connects to the socket at path.
func dial(ctx context.Context, path string) (net.Conn, error) {
	short, done, err := unixsock.ShortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}
