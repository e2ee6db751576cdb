package sandbox

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"rootlessnet/internal/signals"
	"rootlessnet/internal/state"
)

// streams are the command's standard streams. ours are those that nobody needs any more when the command has its copies.
type streams struct {
	in, out, err *os.File
	ours         []*os.File
}

// openStreams opens what Config.LogOutput, OpenStdin and TTY ask for in place of the caller's files.
func (s *sandbox) openStreams() (*streams, error) {
	c := &s.cfg
	st := &streams{in: c.Stdin, out: c.Stdout, err: c.Stderr}
	if c.LogOutput {
		if err := s.logStreams(st); err != nil {
			return nil, err
		}
	}
	if c.TTY {
		tty, err := s.term.Open(c.Stdin, st.out)
		if err != nil {
			st.close()
			return nil, err
		}
		st.in, st.out, st.err, st.ours = tty, tty, tty, append(st.ours, tty)
		return st, nil
	}
	if c.Stdin == nil && c.OpenStdin {
		r, w, err := os.Pipe()
		if err != nil {
			st.close()
			return nil, err
		}
		s.held = append(s.held, w) // nothing is written to it
		st.in, st.ours = r, append(st.ours, r)
	}
	return st, nil
}

// logStreams logs the streams that the caller has not given. A terminal is one stream.
func (s *sandbox) logStreams(st *streams) error {
	var logged []state.Stream
	var to []**os.File
	if st.out == nil {
		logged, to = append(logged, state.Stdout), append(to, &st.out)
	}
	if st.err == nil && !s.cfg.TTY {
		logged, to = append(logged, state.Stderr), append(to, &st.err)
	}
	ends, err := s.output.start(s.record.entry, logged...)
	if err != nil {
		return err
	}
	for i, f := range ends {
		*to[i] = f
	}
	if s.cfg.TTY {
		s.held = append(s.held, ends...) // copying needs it until the end
	} else {
		st.ours = append(st.ours, ends...)
	}
	return nil
}

// finishStreams is for the time after the command's end, or if it was never started. It may be called more than once.
func (s *sandbox) finishStreams() {
	s.term.Finish()
	for _, f := range s.held {
		_ = f.Close()
	}
	s.held = nil
}

// close may be called more than once.
func (st *streams) close() {
	for _, f := range st.ours {
		_ = f.Close()
	}
	st.ours = nil
}

// followStops acts on stops of the command until ended is closed. In a terminal of its own nothing else could continue it.
func (s *sandbox) followStops(pid int, ended <-chan struct{}) {
	for {
		select {
		case sig := <-s.ns.Stops():
			if s.cfg.TTY {
				_ = s.ns.Signal(syscall.SIGCONT)
			} else {
				signals.StopJob(pid, sig)
			}
		case <-ended:
			return
		}
	}
}

// writeIDFile creates Config.IDFile.
func (s *sandbox) writeIDFile() error {
	path := s.cfg.IDFile
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("container ID file found, make sure the other container isn't running or delete %s", path)
	}
	if err != nil {
		return fmt.Errorf("failed to create the container ID file: %w", err)
	}
	_, err = f.WriteString(s.record.id())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		s.removeIDFile()
		return fmt.Errorf("failed to write the container ID to the file: %w", err)
	}
	return nil
}

func (s *sandbox) removeIDFile() {
	if s.cfg.IDFile != "" {
		_ = os.Remove(s.cfg.IDFile)
	}
}
