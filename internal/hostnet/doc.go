// Package hostnet reads the configuration of the host's network: what the choice of a sandbox's subnet depends on, and the host's own
// addresses, whose changes it watches. It imports none of our packages, keeps no state and starts no goroutine.
package hostnet
