// Package resolvconf parses resolv.conf(5) as glibc does. It imports none of our packages, and its functions may be called
// concurrently.
package resolvconf
