// Package lockrank has the order of the data plane's locks in one place, and a build that checks it.
//
// A lock may be taken only while locks of a smaller Rank are held by the same goroutine. In an ordinary build Mutex is
// sync.Mutex and Rank has no effect. With the build tag lockrank every Lock is checked against what the
// goroutine holds, and a violation ends the process with both names: `make check-locks` runs the tests of the data plane in that build.
//
// The locks that are not listed are leaves within one package, and its doc.go names them.
package lockrank
