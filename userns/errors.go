package userns

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"rootlessnet/netns"
)

// Exit codes for failures to run the command, the same as Docker's.
const (
	CodeFailure    = 125 // of the sandbox itself
	CodeNotRunable = 126 // found, but cannot be executed
	CodeNotFound   = 127
	// codeSignal + n is the exit code of a command killed by signal n.
	codeSignal = 128
)

// Error is any failure of this package but that of the command: the same type as in netns, since init sends the errors of
// both to the supervisor. errors.Is sees the errno.
type Error = netns.Error

// ExecError means that the command could not be started. The sandbox goes on.
type ExecError struct {
	Code int // 125, 126 or 127
	Err  error
}

func (e *ExecError) Error() string { return e.Err.Error() }
func (e *ExecError) Unwrap() error { return e.Err }

// InterruptedError says that a signal that asks a program to end, mostly one of the terminal, has ended the start of a sandbox.
type InterruptedError struct{ Signal syscall.Signal }

func (e *InterruptedError) Error() string { return "interrupted by signal: " + e.Signal.String() }

// terminalSignals ask a program to end and are sent to a whole process group, so that init and the programs it needs get them, too.
var terminalSignals = []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTERM}

// interruption is the InterruptedError of a process that ended with that status; nil if it ended for another reason.
func interruption(status syscall.WaitStatus) *InterruptedError {
	if status.Signaled() && slices.Contains(terminalSignals, status.Signal()) {
		return &InterruptedError{status.Signal()}
	}
	return nil
}

// ErrClosed is the error of a Sandbox that was closed or whose init has ended.
var ErrClosed = errors.New("userns: sandbox closed")

// remoteError is an error that init sent: its text, and its errno if it had one.
type remoteError struct {
	text  string
	errno syscall.Errno
}

func (e *remoteError) Error() string { return e.text }

func (e *remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// failBody carries an error across the socket.
type failBody struct {
	Op    string `json:"op"`
	Errno int    `json:"errno,omitempty"`
	Text  string `json:"text"`
	Hint  string `json:"hint,omitempty"`
	Code  int    `json:"code,omitempty"` // of an ExecError
}

func toFail(err error) *failBody {
	f := &failBody{Text: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = int(errno)
	}
	var ee *ExecError
	var e *Error
	switch {
	case errors.As(err, &ee):
		f.Code = ee.Code
	case errors.As(err, &e):
		f.Op, f.Hint, f.Text = e.Op, e.Hint, e.Err.Error()
	}
	return f
}

func (f *failBody) err() error {
	r := &remoteError{text: f.Text, errno: syscall.Errno(f.Errno)}
	switch f.Code {
	case 0:
		return &Error{Op: f.Op, Err: r, Hint: f.Hint}
	case CodeFailure, CodeNotRunable, CodeNotFound:
		return &ExecError{Code: f.Code, Err: r}
	}
	return &Error{Op: "handshake", Err: fmt.Errorf("impossible exit code %d", f.Code)}
}
