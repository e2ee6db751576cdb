package splice

import "golang.org/x/sys/unix"

var PipeSize = 1 << 20

const (
	// pipeSize is asked for; /proc/sys/fs/pipe-max-size is 1 MiB, beyond which root alone may go. It counts pages: the
	// kernel's network buffers are larger than a page, and a pipe holds more of them in fact.
	// idlePipes are kept for the next who needs one. A pipe is needed only while bulk is under way.
	idlePipes = 16
)

// pipe is what splice(2) moves through. held is how many bytes are in it.
type pipe struct {
	r, w int
	held int
}

// pipePool belongs to a Loop's goroutine.
type pipePool struct{ idle []*pipe }

// get returns an empty pipe; nil when there are no descriptors, which only costs a copy.
func (l *pipePool) get() *pipe {
	if n := len(l.idle); n > 0 {
		p := l.idle[n-1]
		l.idle = l.idle[:n-1]
		return p
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1]}
	// Refused beyond the user's share (pipe-user-pages-soft); it works with the size it has.
	_, _ = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, 1<<20)
	return p
}

// put takes back a pipe. One with something in it is closed.
func (l *pipePool) put(p *pipe) {
	if p.held == 0 && len(l.idle) < idlePipes {
		l.idle = append(l.idle, p)
		return
	}
	p.close()
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

func (l *pipePool) close() {
	for _, p := range l.idle {
		p.close()
	}
	l.idle = nil
}
