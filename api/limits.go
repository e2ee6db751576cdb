package api

import "time"

// Limits of both sides.
const (
	// maxRequest is the size of a request body in bytes; a port spec needs less than a hundred.
	maxRequest = 64 << 10
	// maxResponse is the size of a response body in bytes: 65535 published ports of two protocols at about 100 bytes each.
	maxResponse = 16 << 20
)

// Limits of a Server. Its callers are programs on the same machine that send one small request each.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	// writeTimeout includes the time that the backend takes: publishing a range of thousands of ports takes seconds.
	writeTimeout = 60 * time.Second
	idleTimeout  = 30 * time.Second
	maxHeader    = 16 << 10 // bytes
	// maxLeases bounds the descriptors that leases use. Thousands of sandboxes in one network are not expected.
	maxLeases = 1024
	// maxConns bounds all connections. Each lease is one of them; the others are left for requests.
	maxConns = maxLeases + 64
)
