// Package hostnet reads the configuration of the host's network that the choice of a sandbox's subnet depends on. It imports
// none of our packages, keeps no state and starts no goroutine.
package hostnet
