package guest

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome is what a network operation came to: the name of an errno, one of the constants here that are none, or the text
// of another error.
type Outcome string

const (
	OK              Outcome = ""
	Refused         Outcome = "ECONNREFUSED"
	Reset           Outcome = "ECONNRESET"
	HostUnreachable Outcome = "EHOSTUNREACH"
	NetUnreachable  Outcome = "ENETUNREACH"
	NoAddress       Outcome = "EADDRNOTAVAIL"
	Denied          Outcome = "EACCES"
	NotFound        Outcome = "ENOENT"
	TimedOut        Outcome = "TIMEOUT"
	EndOfStream     Outcome = "EOF"
	UnexpectedData  Outcome = "data came instead"
)

// OutcomeOf names what an error of package net means; OK for nil.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return Outcome(unix.ErrnoName(errno))
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return TimedOut
	}
	return Outcome(strings.ReplaceAll(err.Error(), "\n", " "))
}

func (o Outcome) String() string {
	if o == OK {
		return "OK"
	}
	return string(o)
}

// Timed is an outcome and how long it took to come.
type Timed struct {
	Outcome Outcome
	Took    time.Duration
}

func timed(begin time.Time, err error) Timed { return Timed{OutcomeOf(err), time.Since(begin)} }
