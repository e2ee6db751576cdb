// Package nettest holds what the tests of several packages share: a link device in memory and a check for goroutines
// and file descriptors that were left behind. Network namespaces for tests are in nettest/topo.
//
// Of this project it imports tap and spin only, so that any package's tests may use it.
package nettest
