// Package subid reads the ranges of subordinate user and group ids that an administrator has given a user (subuid(5), subgid(5)). It
// imports none of our packages, and its functions may be called concurrently.
package subid
