package sandbox

import (
	"os"
	"sync"
	"time"

	"rootlessnet/internal/state"
)

const (
	// outputChunk is the capacity of a pipe (pipe(7)).
	outputChunk = 64 << 10
	// outputPause is the time between two reads of the pipe. Lines that are written one by one are then read together, and a
	// command that writes without end is limited to 64 KiB per pause, some 60 MB/s, so that logging takes only a small part of
	// the time that the data plane needs.
	outputPause = time.Millisecond
	// outputDrain is far longer than it takes to copy what a pipe holds, also on a busy machine.
	outputDrain = time.Second
)

// outputLog copies the command's output from a pipe to the log file in the state directory. The zero value has not started.
type outputLog struct {
	r  *os.File
	wg sync.WaitGroup
}

// start opens the log and returns the writing end of the pipe. Copying ends when all copies of that end are closed, or by
// close.
func (o *outputLog) start(entry *state.Entry) (*os.File, error) {
	log, err := entry.OpenLog()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		log.Close()
		return nil, err
	}
	o.r = r
	o.wg.Go(func() {
		defer log.Close()
		defer r.Close()
		for buf := make([]byte, outputChunk); ; time.Sleep(outputPause) {
			n, err := r.Read(buf)
			_, _ = log.Write(buf[:n])
			if err != nil {
				return
			}
		}
	})
	return w, nil
}

// close ends the copying when what the command has written last, such as why it ends, is in the log: then no process of the sandbox
// has the writing end, and the pipe ends. A process outside that was passed a copy is waited for until outputDrain has passed. wait
// waits until the copying has ended.
func (o *outputLog) close() {
	if o.r != nil && o.r.SetReadDeadline(time.Now().Add(outputDrain)) != nil {
		_ = o.r.Close()
	}
}

func (o *outputLog) wait() { o.wg.Wait() }
