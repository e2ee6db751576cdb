package api

import "net/http"

// Error is a failure with an HTTP status. A Backend returns it, the Server sends its message, and a Client returns it.
type Error struct {
	Status  int // HTTP status code, 400 or above
	Message string
	Err     error // the cause, which is not sent; nil in a Client's error
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// Invalid returns an *Error of status 400 with the text of err.
func Invalid(err error) error { return &Error{http.StatusBadRequest, err.Error(), err} }

// NotFound returns an *Error of status 404 with the text of err.
func NotFound(err error) error { return &Error{http.StatusNotFound, err.Error(), err} }

// Conflict returns an *Error of status 409 with the text of err.
func Conflict(err error) error { return &Error{http.StatusConflict, err.Error(), err} }

// errEnded answers requests that arrive while the server closes.
var errEnded = &Error{http.StatusServiceUnavailable, "the sandbox has ended", nil}

// errTooLarge answers a request whose body exceeds maxRequest.
func errTooLarge(cause error) *Error {
	return &Error{http.StatusRequestEntityTooLarge, "request too large", cause}
}

// errorBody is the wire type of an Error.
type errorBody struct {
	Message string `json:"message"`
	// Versions are the versions of the API that the server has. Only the answer to an unknown path contains them.
	Versions []string `json:"versions,omitempty"`
}
