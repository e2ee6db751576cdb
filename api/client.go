package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
)

// Client asks the server on one control socket. Its methods may be called concurrently. A failure the server
// reported is an *Error; any other is that of the connection.
type Client struct {
	http *http.Client
}

// NewClient returns a client for the socket at path. Nothing is dialled yet.
func NewClient(path string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		DisableCompression: true,
	}}}
}

// Close closes idle connections; leases stay.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Inspect describes the sandbox.
func (c *Client) Inspect(ctx context.Context) (Sandbox, error) {
	return ask[Sandbox](ctx, c, http.MethodGet, "/sandbox", nil)
}

// Stats reads the counters.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	return ask[Stats](ctx, c, http.MethodGet, "/sandbox/stats", nil)
}

// Ports lists what is published.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	return ask[[]Port](ctx, c, http.MethodGet, "/sandbox/ports", nil)
}

// AddPorts publishes the ports of a spec, all or none.
func (c *Client) AddPorts(ctx context.Context, spec string) ([]Port, error) {
	return ask[[]Port](ctx, c, http.MethodPost, "/sandbox/ports", PortRequest{spec})
}

// RemovePorts closes the published ports that a spec names.
func (c *Client) RemovePorts(ctx context.Context, spec string) ([]Port, error) {
	return ask[[]Port](ctx, c, http.MethodDelete, "/sandbox/ports", PortRequest{spec})
}

// Lease is a hold on a sandbox.
type Lease struct {
	conn io.ReadWriteCloser
	done chan struct{}
	once sync.Once
}

// Lease takes a lease. It lasts until Close, or until the sandbox ends; ctx is for the asking only.
func (c *Client) Lease(ctx context.Context, kind LeaseKind) (*Lease, error) {
	// The transport ties a connection that was upgraded to the context of its request.
	held, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	resp, err := c.send(held, http.MethodPost, "/sandbox/lease", LeaseRequest{kind})
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
	go func() {
		defer cancel()
		defer close(l.done)
		var b [1]byte
		conn.Read(b[:]) // nothing is ever said: this is the end
	}()
	return l, nil
}

// Done is closed when the lease is over, by Close or by the sandbox's end.
func (l *Lease) Done() <-chan struct{} { return l.done }

// Close gives the lease back. It may be called more than once.
func (l *Lease) Close() error {
	var err error
	l.once.Do(func() { err = l.conn.Close() })
	<-l.done
	return err
}

// ask sends a request and reads the answer of a success.
func ask[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var v T
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxResponse)).Decode(&v); err != nil {
		return v, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return v, nil
}

// send returns the response of a success, with its body open.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	// The host is of no meaning on a unix socket, and must not be empty.
	req, err := http.NewRequestWithContext(ctx, method, "http://sandbox"+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if path == "/sandbox/lease" {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", leaseProtocol)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the address in it is made up
		}
		return nil, err
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp, nil
	}
	defer resp.Body.Close()
	var e errorBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxRequest)).Decode(&e); err != nil || e.Message == "" {
		e.Message = resp.Status
	}
	return nil, &Error{Status: resp.StatusCode, Message: e.Message}
}
