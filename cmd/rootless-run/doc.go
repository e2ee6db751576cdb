// Rootless-run gives a command its own network, no privilege needed.
//
// It turns its command line into a rootlessnet.Config, and nothing else: what the words mean is the library's.
//
// # Detached
//
// With --detach the program starts itself again in a session of its own, without the flag and with two pipes: what
// the second one says goes through the first pipe to the caller's standard error, and the id of the started sandbox
// through the second. The first process ends when it has the id, or with the exit code of the second one when there
// will be none. The caller's own descriptors stay with the first process, so that $(rootless-run --detach …) returns.
package main
