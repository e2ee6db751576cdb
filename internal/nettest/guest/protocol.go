package guest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"time"
)

// Operation is one action of the guest program. R is the type of its result; None where there is none.
type Operation[R any] interface{ run() (R, error) }

// None is the result of an operation that only succeeds or fails.
type None struct{}

// request is one line to the agent.
type request struct {
	Operation string
	Arguments json.RawMessage
}

// reply is one line from the guest program: the result, or why the operation could not be carried out.
type reply struct {
	Result json.RawMessage `json:",omitempty"`
	Error  string          `json:",omitempty"`
}

// word is the first argument that makes the test binary the guest program, agentWord the second that makes it the agent.
const word, agentWord = "guest", "agent"

// AgentCommand is the command line, after the program's path, that starts the agent.
func AgentCommand() []string { return []string{word, agentWord} }

// Command is the command line, after the program's path, that runs one operation.
func Command[R any](op Operation[R]) []string {
	r := encode(op)
	return []string{word, r.Operation, string(r.Arguments)}
}

// Name is how the operation is called on a command line, for a test that looks for the process.
func Name[R any](op Operation[R]) string { return reflect.TypeOf(op).Name() }

// Request is the line that has the agent run one operation, without the newline.
func Request[R any](op Operation[R]) string {
	line, err := json.Marshal(encode(op))
	if err != nil {
		panic(err)
	}
	return string(line)
}

func encode[R any](op Operation[R]) request {
	name := Name(op)
	if operations[name] == nil {
		panic("guest: the operation " + name + " is not in the table of operations.go")
	}
	arguments, err := json.Marshal(op)
	if err != nil {
		panic(err)
	}
	return request{name, arguments}
}

// Decode reads what the guest program printed for the operation.
func Decode[R any](_ Operation[R], line string) (result R, err error) {
	raw, err := decodeReply(line)
	if err == nil {
		err = strict(raw, &result)
	}
	return result, err
}

func decodeReply(line string) (json.RawMessage, error) {
	var r reply
	if err := strict([]byte(line), &r); err != nil {
		return nil, fmt.Errorf("%q is no reply: %w", line, err)
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return r.Result, nil
}

// strict decodes one JSON value and refuses fields that the type does not have.
func strict(text []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(to)
}

// operations has every operation by the name of its type; see operations.go.
var operations = map[string]func(arguments json.RawMessage) (result any, err error){}

// background are the operations that leave something running, for which a program of its own waits to be killed.
var background = map[string]bool{}

// add enters an operation into the table.
func add[O Operation[R], R any]() {
	var op O
	operations[Name(op)] = func(arguments json.RawMessage) (any, error) {
		var op O
		if err := strict(arguments, &op); err != nil {
			return nil, fmt.Errorf("arguments %s: %w", arguments, err)
		}
		return op.run()
	}
}

// addServer is add for an operation that leaves something running.
func addServer[O Operation[R], R any]() {
	var op O
	add[O]()
	background[Name(op)] = true
}

// Main runs the guest program and exits when this program was started as it; otherwise it returns.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != word {
		return
	}
	if os.Args[2] == agentWord {
		agent(os.Stdin, os.Stdout)
		os.Exit(0)
	}
	r := request{Operation: os.Args[2], Arguments: json.RawMessage("{}")}
	if len(os.Args) > 3 {
		r.Arguments = json.RawMessage(os.Args[3])
	}
	answer := perform(r)
	if answer.Error != "" {
		fmt.Fprintln(os.Stderr, "guest:", answer.Error)
		os.Exit(1)
	}
	write(os.Stdout, answer)
	if background[r.Operation] {
		for { // until a signal ends the process; select{} alone is a deadlock to the Go runtime, which ends the process
			time.Sleep(time.Hour)
		}
	}
	os.Exit(0)
}

// agent answers each line of in with a line on out, until the end of in.
func agent(in io.Reader, out io.Writer) {
	write(out, reply{})
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20) // requests carry the payload of datagrams
	for lines.Scan() {
		var r request
		if err := strict(lines.Bytes(), &r); err != nil {
			write(out, reply{Error: err.Error()})
			continue
		}
		write(out, perform(r))
	}
}

func perform(r request) reply {
	op := operations[r.Operation]
	if op == nil {
		return reply{Error: fmt.Sprintf("no operation called %q", r.Operation)}
	}
	result, err := op(r.Arguments)
	if err != nil {
		return reply{Error: r.Operation + ": " + err.Error()}
	}
	text, err := json.Marshal(result)
	if err != nil {
		return reply{Error: r.Operation + ": " + err.Error()}
	}
	return reply{Result: text}
}

func write(out io.Writer, r reply) {
	line, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	_, _ = out.Write(append(line, '\n'))
}
