package api

import (
	"context"
	"net/http"
	"strconv"
)

// RootlessKitInfo sends the same request as RootlessKit's own client. The server may be RootlessKit.
func (c *Client) RootlessKitInfo(ctx context.Context) (RootlessKitInfo, error) {
	return request[RootlessKitInfo](ctx, c, http.MethodGet, pathRootlessKitInfo, nil)
}

// RootlessKitPorts lists the published ports, one entry for each mapping.
func (c *Client) RootlessKitPorts(ctx context.Context) ([]RootlessKitPortStatus, error) {
	return request[[]RootlessKitPortStatus](ctx, c, http.MethodGet, pathRootlessKitPorts, nil)
}

// AddRootlessKitPort publishes one port.
func (c *Client) AddRootlessKitPort(ctx context.Context, spec RootlessKitPortSpec) (RootlessKitPortStatus, error) {
	return request[RootlessKitPortStatus](ctx, c, http.MethodPost, pathRootlessKitPorts, spec)
}

// RemoveRootlessKitPort closes the published port that has the ID of a RootlessKitPortStatus.
func (c *Client) RemoveRootlessKitPort(ctx context.Context, id int) error {
	resp, err := c.send(ctx, http.MethodDelete, pathRootlessKitPorts+"/"+strconv.Itoa(id), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
