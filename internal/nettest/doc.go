// Package nettest holds what the tests of several packages share: a link device in memory and a check for goroutines
// and file descriptors that were left behind. Network namespaces for tests are in nettest/topo.
//
// It imports tap and nothing else of ours, so that any package's tests may use it.
package nettest
