// Package state keeps the state directories of a user's running sandboxes: one directory for each, below
// $XDG_RUNTIME_DIR/rootless-run. Other programs find a sandbox, its control socket and its processes through it.
//
// # Theory of operation
//
//	rootless-run/            mode 0700, owned by the user; flock on the directory itself: the outer lock
//	  3f2a9c0d11be/          mode 0700, named by the short id
//	    lock                 flock: held by the sandbox's supervisor for as long as that lives
//	    state.json           a Record, replaced by rename(2)
//	    api.sock             the control socket (package api)
//	    output.log           the latest output of a detached command; output.log.1 has what came before
//
// A sandbox is live exactly as long as its own lock is held. The kernel releases the lock when the supervisor ends in any way,
// so no decision depends on a pid, which may have been reused. The directories of supervisors that were killed are removed by
// the next call of List, Lookup or Create. Those calls hold the outer lock, which makes it one step to compare a name with those
// in use and to claim it.
//
// # States
//
// Create makes an Entry with a Record of status Created. The supervisor changes the Record by Update as the sandbox comes up,
// and Close removes the directory.
//
// # Stored format
//
// A Record is what is on disk; programs of other versions read it. Its fields are separate from the wire types of the control
// socket: this package does not import package api, which converts a Record itself. A test compares the stored text with a
// copy, so that the format does not change by accident.
//
// # Dependencies
//
// The package imports the standard library and golang.org/x/sys/unix. It writes only below the directory that it was opened
// for, and reads /proc.
//
// # Limits and failures
//
// The directory must be on a file system of this machine that supports flock(2) and unix sockets. A directory that is a
// symbolic link, belongs to another user or cannot be written to is refused. A name is unique among the live sandboxes of one
// directory, that is of one user. A record and the output of a command are bounded by named constants. Every failure is an
// *Error, except ErrNameInUse, ErrNotFound and ErrAmbiguous, whose text Create and Lookup complete.
package state
