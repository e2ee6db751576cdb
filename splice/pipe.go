package splice

import (
	"golang.org/x/sys/unix"

	"rootlessnet/internal/fdbudget"
)

const (
	// pipeSize is the capacity in bytes that is requested, and the most that one splice moves. It is the default of
	// /proc/sys/fs/pipe-max-size, which only root may exceed. The kernel counts a pipe's capacity in pages; as its network
	// buffers are larger than a page, a pipe in fact holds more.
	pipeSize = 1 << 20

	// maxIdlePipes is how many unused pipes are kept. A direction needs a pipe only while it is in bulk transfer.
	maxIdlePipes = 16

	// maxPipes bounds the pipes in use, and their memory: a direction keeps its pipe, with up to pipeSize bytes in it, while
	// its destination is full. Directions that get no pipe, also because the budget of descriptors has none, copy.
	maxPipes = 256

	// descriptors of a pipe.
	descriptors = 2
)

// pipe is the pipe that splice(2) moves data through. held is the number of bytes in it.
type pipe struct {
	r, w int
	held int
}

// pipePool belongs to the loop's handler run.
type pipePool struct {
	idle []*pipe
	used int // pipes given out
}

// get returns an empty pipe, or nil if too many are in use or none can be made; the caller copies instead.
func (l *pipePool) get() *pipe {
	if l.used >= maxPipes {
		return nil
	}
	if n := len(l.idle); n > 0 {
		p := l.idle[n-1]
		l.idle = l.idle[:n-1]
		l.used++
		return p
	}
	if !fdbudget.Process().Take(fdbudget.Pipes, descriptors) {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		fdbudget.Process().Give(fdbudget.Pipes, descriptors)
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1]}
	// Refused when the user's pipes exceed pipe-user-pages-soft (pipe(7)); the pipe then works with the capacity it has.
	_, _ = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	l.used++
	return p
}

// put returns a pipe to the pool. One that still holds data is closed, which discards the data.
func (l *pipePool) put(p *pipe) {
	l.used--
	if p.held == 0 && len(l.idle) < maxIdlePipes {
		l.idle = append(l.idle, p)
		return
	}
	p.close()
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
	fdbudget.Process().Give(fdbudget.Pipes, descriptors)
}

func (l *pipePool) close() {
	for _, p := range l.idle {
		p.close()
	}
	l.idle = nil
}
