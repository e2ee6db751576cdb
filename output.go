package rootlessnet

import (
	"os"
	"time"
)

const (
	// outputChunk is what a pipe holds (pipe(7)).
	outputChunk = 64 << 10
	// outputPause is between two looks at the pipe. Lines that come one by one are then taken together, and a command that
	// writes without end waits for us: some 60 MB/s, a small part of the time in which the network's work is to be done.
	outputPause = time.Millisecond
)

// logOutput makes the log and returns the end of a pipe that leads there. It ends with the sandbox, whoever else has the
// pipe.
func (s *sandbox) logOutput() (*os.File, error) {
	log, err := s.entry.OpenLog()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		log.Close()
		return nil, err
	}
	s.output = r
	s.wg.Go(func() {
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
