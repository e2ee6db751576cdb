// Package gateway assembles the network of one sandbox.
package gateway
