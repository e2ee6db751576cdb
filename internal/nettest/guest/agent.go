package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"
)

// Patience bounds one operation of an agent; operations that take long have bounds of their own inside.
const Patience = 90 * time.Second

// ErrAgentEnded is for an agent whose output has ended.
var ErrAgentEnded = errors.New("the agent ended")

// Agent is the test's side of a running agent. It carries out one operation at a time, for one goroutine.
type Agent struct {
	in    io.WriteCloser
	lines chan string // closed at the end of the output
}

// NewAgent returns the test's side of the agent with the standard input and output in and out.
func NewAgent(in io.WriteCloser, out io.Reader) *Agent {
	a := &Agent{in, make(chan string, 1)}
	go func() {
		defer close(a.lines)
		scan := bufio.NewScanner(out)
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			a.lines <- scan.Text()
		}
	}()
	return a
}

// AwaitReady waits for the agent's first line, which it prints when it runs.
func (a *Agent) AwaitReady() error {
	line, err := a.line()
	if err == nil {
		_, err = decodeReply(line)
	}
	return err
}

// Do has the agent carry out one operation.
func Do[R any](a *Agent, op Operation[R]) (result R, err error) {
	if _, err = fmt.Fprintln(a.in, Request(op)); err != nil {
		return result, err
	}
	line, err := a.line()
	if err != nil {
		return result, err
	}
	return Decode(op, line)
}

func (a *Agent) line() (string, error) {
	select {
	case line, ok := <-a.lines:
		if !ok {
			return "", ErrAgentEnded
		}
		return line, nil
	case <-time.After(Patience):
		return "", errors.New("the agent does not answer")
	}
}

// CloseInput has the agent end.
func (a *Agent) CloseInput() { a.in.Close() }

// Drain waits for the end of the agent's output, which must be read before exec.Cmd.Wait is called.
func (a *Agent) Drain() {
	for range a.lines {
	}
}
