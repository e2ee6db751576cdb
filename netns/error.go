package netns

// Error is a failure of an operation on a network namespace. errors.Is sees the errno.
type Error struct {
	Op   string // the operation, in a user's terms
	Err  error
	Hint string // what to do about it; may be empty
}

func (e *Error) Error() string {
	s := e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

const (
	// HintDoctor is the Hint of errors that mostly come from a kernel without a feature or a machine that forbids it.
	HintDoctor = "run `rootless-net doctor` to see what is missing"
	// HintOwner is the Hint of errors that mean a lack of capabilities over an existing namespace.
	HintOwner = "the namespace's owner can attach to it, and root of the user namespace that owns it"
)

// Warn takes one warning: something that a network can do without was not possible. The arguments are those of fmt.Sprintf.
type Warn func(format string, args ...any)
