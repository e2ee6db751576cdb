package api

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// decode reads one JSON value that has no unknown fields and nothing behind it. The error is an *Error of status 400 or 413.
func decode(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("data after the value")
			if tooLarge(end) {
				err = end
			}
		}
	}
	switch {
	case err == nil:
		return nil
	case tooLarge(err):
		return errTooLarge(err)
	default:
		return &Error{http.StatusBadRequest, "invalid request: " + err.Error(), err}
	}
}

// tooLarge reports whether err is that of a body limited by http.MaxBytesReader.
func tooLarge(err error) bool {
	var e *http.MaxBytesError
	return errors.As(err, &e)
}

// answer sends v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(text, '\n')) // an error means that the client has closed the connection
}

// fail sends an error, with the status of the *Error that it is or wraps, or 500.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var e *Error
	if errors.As(err, &e) {
		status = e.Status
	}
	answer(w, status, errorBody{Message: err.Error()})
}

// orEmpty returns an empty slice in place of nil, which JSON would write as null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
