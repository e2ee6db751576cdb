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
	"syscall"
)

// Client sends requests to the server on one control socket. Its methods may be called concurrently. A failure that the
// server reports is an *Error; every other error is one of the connection. A request takes as long as its context allows.
type Client struct {
	path string // of the socket
	http *http.Client
}

// NewClient returns a client for the socket at path. It connects with the first request.
func NewClient(path string) *Client {
	return &Client{path, &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		DisableCompression: true,
	}}}
}

// Close closes idle connections. Leases stay open, and the client may still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Reachable returns nil if a server accepts connections on the socket. It sends no request.
func (c *Client) Reachable(ctx context.Context) error {
	conn, err := dial(ctx, c.path)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Inspect describes the sandbox.
func (c *Client) Inspect(ctx context.Context) (Sandbox, error) {
	return request[Sandbox](ctx, c, http.MethodGet, pathSandbox, nil)
}

// Stats reads the counters.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	return request[Stats](ctx, c, http.MethodGet, pathStats, nil)
}

// Ports lists the sockets of all published ports.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	return request[[]Port](ctx, c, http.MethodGet, pathPorts, nil)
}

// AddPorts publishes all ports of a spec or none, and returns the sockets that were bound.
func (c *Client) AddPorts(ctx context.Context, spec string) ([]Port, error) {
	return request[[]Port](ctx, c, http.MethodPost, pathPorts, PortRequest{spec})
}

// RemovePorts closes the published ports that match a spec, and returns them.
func (c *Client) RemovePorts(ctx context.Context, spec string) ([]Port, error) {
	return request[[]Port](ctx, c, http.MethodDelete, pathPorts, PortRequest{spec})
}

// Kill sends a signal to the command.
func (c *Client) Kill(ctx context.Context, sig syscall.Signal) error {
	return c.order(ctx, pathKill, KillRequest{int(sig)})
}

// Rename gives the sandbox another name.
func (c *Client) Rename(ctx context.Context, name string) error {
	return c.order(ctx, pathRename, RenameRequest{name})
}

// order sends a request whose success has no body.
func (c *Client) order(ctx context.Context, path string, body any) error {
	resp, err := c.send(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// request sends a request and decodes the body of a success.
func request[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
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

// send sends a request and returns the response of a success, whose body the caller must close.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	// A unix socket needs no host name, but net/http refuses an empty one.
	req, err := http.NewRequestWithContext(ctx, method, "http://sandbox"+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if path == pathLease {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", leaseProtocol)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, whose host name means nothing
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
