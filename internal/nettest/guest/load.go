package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// held are the connections of Hold.
var held struct {
	sync.Mutex
	conns []net.Conn
}

// Hold opens Count connections to an Echo server, reads its greeting on each, and keeps them besides those that it has
// kept already.
type Hold struct {
	To    Target
	Count int
}

// Held is how many connections there are, or answered, and what the first failure was.
type Held struct {
	Count   int
	Outcome Outcome
}

func (op Hold) run() (Held, error) {
	held.Lock()
	defer held.Unlock()
	var failure error
	for range op.Count {
		c, err := op.To.dial(patience)
		if err == nil {
			err = awaitGreeting(c)
		}
		if err != nil {
			failure = err
			break
		}
		held.conns = append(held.conns, c)
	}
	return Held{len(held.conns), OutcomeOf(failure)}, nil
}

// EchoHeld sends one byte there and back on every connection of Hold, and counts those that answered. A reset is no
// failure of the operation: such a connection just does not count.
type EchoHeld struct {
	Timeout time.Duration // for each; 0 for a few seconds
}

func (op EchoHeld) run() (Held, error) {
	if op.Timeout == 0 {
		op.Timeout = patience
	}
	held.Lock()
	defer held.Unlock()
	answered := 0
	var first error
	for i, c := range held.conns {
		if err := echoByte(c, byte(i), op.Timeout); err == nil {
			answered++
		} else if first == nil {
			first = fmt.Errorf("connection %d: %w", i, err)
		}
	}
	if first != nil && !errors.Is(first, syscall.ECONNRESET) {
		return Held{answered, Outcome(first.Error())}, nil
	}
	return Held{answered, OK}, nil
}

func echoByte(c net.Conn, b byte, timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{b}); err != nil {
		return err
	}
	got := make([]byte, 1)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if got[0] != b {
		return fmt.Errorf("sent the byte %d, got %d", b, got[0])
	}
	return nil
}

// DropHeld closes the connections of Hold.
type DropHeld struct{}

func (DropHeld) run() (None, error) {
	held.Lock()
	defer held.Unlock()
	for _, c := range held.conns {
		c.Close()
	}
	held.conns = nil
	return None{}, nil
}

// DialMany begins Count connections at once, and returns when their first SYNs are on their way; the attempts go on for a
// few seconds.
type DialMany struct {
	To    Target
	Count int
}

func (op DialMany) run() (None, error) {
	var begun sync.WaitGroup
	for range op.Count {
		begun.Add(1)
		go func() {
			begun.Done()
			if c, err := op.To.dial(patience); err == nil {
				c.Close()
			}
		}()
	}
	begun.Wait()
	time.Sleep(200 * time.Millisecond)
	return None{}, nil
}

// ConnectTogether opens Count connections to an Echo server at the same time. The result is the first failure, and the time
// until the last server had greeted.
type ConnectTogether struct {
	To    Target
	Count int
}

func (op ConnectTogether) run() (Timed, error) {
	begin := time.Now()
	failures := make(chan error, op.Count)
	for range op.Count {
		go func() {
			c, err := op.To.dial(patience)
			if err == nil {
				defer c.Close()
				err = awaitGreeting(c)
			}
			failures <- err
		}()
	}
	var first error
	for range op.Count {
		if err := <-failures; first == nil {
			first = err
		}
	}
	return timed(begin, first), nil
}

// Churn opens Count connections to an Echo server one after the other, with one byte there and back on each. The result is
// how many worked.
type Churn struct {
	To    Target
	Count int
}

func (op Churn) run() (worked int, err error) {
	for range op.Count {
		c, err := op.To.dial(patience)
		if err != nil {
			continue
		}
		b := []byte("x")
		if err = awaitGreeting(c); err == nil {
			if _, err = c.Write(b); err == nil {
				_, err = io.ReadFull(c, b)
			}
		}
		_ = c.(*net.TCPConn).SetLinger(0) // otherwise connections in TIME_WAIT use up the ports
		c.Close()
		if err == nil {
			worked++
		}
	}
	return worked, nil
}

// Fill opens Count connections to a server that does not read, and writes to each until nothing is taken for a while; they
// stay open.
type Fill struct {
	To    Target
	Count int
}

// Filled is how many bytes were taken in all.
type Filled struct {
	Bytes   int
	Outcome Outcome
}

func (op Fill) run() (Filled, error) {
	sum := 0
	for range op.Count {
		c, err := op.To.dial(patience)
		if err != nil {
			return Filled{sum, OutcomeOf(err)}, nil
		}
		kept <- c.(*net.TCPConn)
		one := op.On(c)
		if sum += one.Bytes; one.Outcome != OK {
			return Filled{sum, one.Outcome}, nil
		}
	}
	return Filled{sum, OK}, nil
}

// HoldUnread opens Count connections, which it never reads, and writes to each until nothing is taken for a while, if Send is
// set. They stay open. The result is how many there are, and what all of them have taken.
type HoldUnread struct {
	To     Target
	Count  int
	Send   bool
	Socket Socket
}

// Unread is what HoldUnread came to.
type Unread struct {
	Count   int
	Bytes   int
	Outcome Outcome // of the first connect that failed
}

func (op HoldUnread) run() (u Unread, err error) {
	type result struct {
		bytes   int
		outcome Outcome
	}
	const together = 50 // connects at a time
	results := make(chan result, op.Count)
	slots := make(chan struct{}, together)
	for range op.Count {
		slots <- struct{}{}
		go func() {
			c, err := op.Socket.dial(op.To)
			<-slots
			if err != nil {
				results <- result{0, OutcomeOf(err)}
				return
			}
			kept <- c.(*net.TCPConn)
			n := 0
			if op.Send {
				n = Fill{}.On(c).Bytes
			}
			results <- result{n, OK}
		}()
	}
	for range op.Count {
		switch r := <-results; {
		case r.outcome == OK:
			u.Count++
			u.Bytes += r.bytes
		case u.Outcome == OK:
			u.Outcome = r.outcome
		}
	}
	return u, nil
}

// fillPause is how long a connection must not take anything to be full.
const fillPause = 300 * time.Millisecond

// On fills an open connection.
func (Fill) On(c net.Conn) Filled {
	const most = 1 << 30
	b := make([]byte, 64<<10)
	sum := 0
	for sum < most {
		if err := c.SetWriteDeadline(time.Now().Add(fillPause)); err != nil {
			return Filled{sum, OutcomeOf(err)}
		}
		n, err := c.Write(b)
		sum += n
		if os.IsTimeout(err) {
			return Filled{sum, OK}
		}
		if err != nil {
			return Filled{sum, OutcomeOf(err)}
		}
	}
	return Filled{sum, Outcome(fmt.Sprintf("%d bytes were taken for a server that does not read", sum))}
}
