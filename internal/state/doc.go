// Package state keeps what a user's sandboxes tell each other about themselves: one directory for each, below
// $XDG_RUNTIME_DIR/rootless-run.
//
// # Theory of operation
//
//	rootless-run/            0700, ours
//	  lock                   flock: held while names are compared, directories made and removed
//	  3f2a9c0d11be/          0700, named by the short id
//	    lock                 flock: held by the supervisor for as long as it lives
//	    state.json           a Record, replaced by rename
//	    api.sock             the control socket (package api)
//	    output.log           what a detached command wrote last; before that, output.log.1
//
// A sandbox is live exactly as long as its own lock is held. The kernel lets go of it when the supervisor ends in
// whatever way, so there is no pid that could have been reused to ask about, and whoever looks next removes what a
// killed supervisor left behind. The outer lock makes "is this name free" and "it is mine now" one step.
//
// # States
//
// An Entry is made by Create, filled in by Write as the sandbox comes up, and gone after Close.
//
// # Limits
//
// The directory must be on a file system of this machine that knows flock(2) and unix sockets. A name is unique among
// the live sandboxes of one directory, that is of one user.
package state
