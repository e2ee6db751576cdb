// Package pooltest contains the checks of a pool of transparent sockets that several packages run: those that open the pool in
// different ways. It does not import netns, so that the tests of netns can import it.
package pooltest
