// Package asroot tests what only the machine's root can do: connect a namespace that belongs to the machine's own user
// namespace, as `ip netns add` makes it. `make test` runs it when started as root; elsewhere it is skipped with a message.
package asroot
