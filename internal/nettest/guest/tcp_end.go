package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// AwaitReset connects to a ResetAfterByte server and provokes the reset. The result is what the read came to, and how long
// after the byte was sent.
type AwaitReset struct{ To Target }

func (op AwaitReset) run() (Timed, error) {
	begin := time.Now()
	c, err := op.To.dial(patience)
	if err != nil {
		return timed(begin, err), nil
	}
	defer c.Close()
	return op.On(c), nil
}

// On provokes the reset on an open connection.
func (AwaitReset) On(c net.Conn) Timed {
	begin := time.Now()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return timed(begin, err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return timed(begin, err)
	}
	begin = time.Now()
	if _, err := c.Write(b); err != nil {
		return timed(begin, err)
	}
	_, err := c.Read(b)
	result := timed(begin, err)
	switch {
	case err == nil:
		result.Outcome = UnexpectedData
	case errors.Is(err, io.EOF):
		result.Outcome = EndOfStream
	}
	return result
}

// CloseTogether opens Count connections to a ClosingTogether server, one after the other. Both ends send a greeting and
// close their half without waiting for the other's: OK when the greeting and the end came on each of them.
type CloseTogether struct {
	To    Target
	Count int
}

func (op CloseTogether) run() (Outcome, error) {
	for range op.Count {
		c, err := op.To.dial(patience)
		if err != nil {
			return OutcomeOf(err), nil
		}
		if got := op.On(c); got != OK {
			return got, nil
		}
	}
	return OK, nil
}

// On is one end of an open connection, which it closes.
func (CloseTogether) On(c net.Conn) Outcome {
	const greeting = "good bye"
	defer c.Close()
	switch got, err := exchange(c, greeting, patience); {
	case err != nil:
		return OutcomeOf(err)
	case got != greeting:
		return Outcome(fmt.Sprintf("the other end sent %q", got))
	}
	return OK
}

// Abort connects to a Reporting server, waits for its greeting, sends a byte, gives it time to arrive, and resets the
// connection.
type Abort struct{ To Target }

func (op Abort) run() (Outcome, error) {
	c, err := op.To.dial(patience)
	if err != nil {
		return OutcomeOf(err), nil
	}
	return op.On(c), nil
}

// On resets an open connection.
func (Abort) On(c net.Conn) Outcome {
	defer c.Close()
	if err := awaitGreeting(c); err != nil {
		return OutcomeOf(err)
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return OutcomeOf(err)
	}
	time.Sleep(100 * time.Millisecond)
	return OutcomeOf(c.(*net.TCPConn).SetLinger(0))
}
