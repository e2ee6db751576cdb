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

// outputLog copies the command's output from a pipe for each stream to the log in the state directory. What is written to both within
// outputPause may be in another order there. The zero value has not started.
type outputLog struct {
	log   *state.Log
	pipes []*os.File // reading ends
	wg    sync.WaitGroup
}

// start opens the log and returns the writing end of a pipe for each of the streams. Copying ends when all copies of those ends are
// closed, or by close.
func (o *outputLog) start(entry *state.Entry, streams ...state.Stream) (ends []*os.File, err error) {
	log, err := entry.OpenLog()
	if err != nil {
		return nil, err
	}
	for range streams {
		r, w, err := os.Pipe()
		if err != nil {
			for _, f := range append(o.pipes, ends...) {
				f.Close()
			}
			o.pipes = nil
			log.Close()
			return nil, err
		}
		o.pipes, ends = append(o.pipes, r), append(ends, w)
	}
	o.log = log
	for i, stream := range streams {
		o.wg.Go(func() { o.copy(o.pipes[i], stream) })
	}
	return ends, nil
}

func (o *outputLog) copy(r *os.File, stream state.Stream) {
	defer r.Close()
	for buf := make([]byte, outputChunk); ; time.Sleep(outputPause) {
		n, err := r.Read(buf)
		o.log.Write(stream, buf[:n])
		if err != nil {
			return
		}
	}
}

// close ends the copying when what the command has written last, such as why it ends, is in the log: then no process of the sandbox
// has a writing end, and the pipes end. A process outside that was passed a copy is waited for until outputDrain has passed. wait
// waits until the copying has ended.
func (o *outputLog) close() {
	for _, r := range o.pipes {
		if r.SetReadDeadline(time.Now().Add(outputDrain)) != nil {
			_ = r.Close()
		}
	}
}

func (o *outputLog) wait() {
	o.wg.Wait()
	if o.log != nil {
		_ = o.log.Close()
		o.log = nil
	}
}
