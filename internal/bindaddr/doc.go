// Package bindaddr listens on addresses of the host and explains why that failed: whether IPv6 is missing, whether the port is
// reserved for root, in the words of Docker or of Podman.
//
// It imports none of our packages and keeps no state; all functions may be called concurrently.
package bindaddr
