package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// Lease is an open connection that keeps a sandbox, see LeaseKind. Its methods may be called concurrently. The caller must Close it.
type Lease struct {
	conn io.ReadWriteCloser
	done chan struct{}
	once sync.Once
}

// Lease takes a lease. It lasts until Close or until the sandbox ends; ctx bounds the request only.
func (c *Client) Lease(ctx context.Context, kind LeaseKind) (*Lease, error) {
	// net/http closes an upgraded connection when the context of its request ends, so the request has a context of its own,
	// which follows ctx until the answer is there.
	held, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	resp, err := c.send(held, http.MethodPost, pathLease, LeaseRequest{kind})
	if err == nil && !stop() {
		resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		cancel()
		return nil, fmt.Errorf("lease: unexpected status %s", resp.Status)
	}
	l := &Lease{conn: conn, done: make(chan struct{})}
	go func() { // ends with the connection: Close waits for it
		defer cancel()
		defer close(l.done)
		var b [1]byte
		conn.Read(b[:]) // the server sends nothing: Read returns when the connection is closed
	}()
	return l, nil
}

// Done is closed when the lease is over, by Close or by the end of the sandbox.
func (l *Lease) Done() <-chan struct{} { return l.done }

// Close releases the lease. It may be called more than once.
func (l *Lease) Close() error {
	var err error
	l.once.Do(func() { err = l.conn.Close() })
	<-l.done
	return err
}
