// Package state keeps the state directories of a user's sandboxes, of those that run and of some that have ended: one directory for
// each, below $XDG_RUNTIME_DIR/rootless-run. Other programs find a sandbox, its control socket and its processes through it.
//
// # Theory of operation
//
//	rootless-run/            mode 0700, owned by the user; flock on the directory itself: the outer lock
//	  3f2a9c0d11be/          mode 0700, named by the short id
//	    lock                 flock: held by the sandbox's supervisor for as long as that lives; gone when the record says Exited
//	    state.json           a Record, replaced by rename(2)
//	    api.sock             the control socket (package api)
//	    output.frames        the latest output of a detached command (log.go); output.frames.1 has what came before
//	    exit.CODE            empty; made when the sandbox has ended with that exit code
//
// A sandbox is live exactly as long as its own lock is held. The kernel releases the lock when the supervisor ends in any way,
// so no decision depends on a pid, which may have been reused. The directories of supervisors that were killed are removed by
// the next call of List, Lookup or Create. Those calls hold the outer lock, which makes it one step to compare a name with those
// in use and to claim it.
//
// A sandbox whose record says Keep has ended if its lock is free; its directory stays until Remove, or until a bound is exceeded: a
// number, an age and a size of all of them (ended.go), which List, Lookup and each End enforce. When its record is complete, the lock
// file is removed, so that a start need not read the record. The name of an ended sandbox is free; the next call that reads the
// record after another sandbox has taken the name renames the ended one. exit.CODE is made before the record is replaced. It needs no space on
// the disk; and inotify reports its name to a Watcher even if the directory is removed at once, so that Wait knows the exit code of a
// sandbox that is not kept.
//
// # States
//
// Create makes an Entry with a Record of status Created. The supervisor changes the Record by Update as the sandbox comes up
// (Running) and when its command has ended before the last user of its network (Lingering). Close removes the directory. End does the
// same, or with Keep leaves it with status Exited. Where the supervisor was killed, or could not write the record, the next call that
// reads the directory completes it (settle).
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
// directory, that is of one user. A record and the output of a command are bounded by named constants. On a full disk a
// new sandbox removes those that are kept. Every failure is an *Error, except ErrNameInUse, ErrNotFound, ErrAmbiguous, ErrRunning and
// ErrNoLog, whose text the functions complete. A Watcher needs inotify; it notices a killed supervisor within sweepInterval.
//
// # Locks
//
// The outer lock is taken before the lock of an Entry (Rename), never while that is held.
package state
