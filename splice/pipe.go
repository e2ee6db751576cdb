package splice

import "golang.org/x/sys/unix"

const (
	// pipeSize is asked for, and moved at once; /proc/sys/fs/pipe-max-size is 1 MiB, beyond which root alone may go. It counts pages: the
	// kernel's network buffers are larger than a page, and a pipe holds more of them in fact.
	pipeSize = 1 << 20

	// idlePipes are kept for the next who needs one. A pipe is needed only while bulk is under way.
	idlePipes = 16

	// A direction whose peer takes nothing keeps its pipe, with up to 1 MiB in it. mostPipes bounds that memory, and pipeShare
	// of RLIMIT_NOFILE the descriptors, of which each has two. What is beyond is copied.
	mostPipes = 256
	pipeShare = 16
)

// pipe is what splice(2) moves through. held is how many bytes are in it.
type pipe struct {
	r, w int
	held int
}

// pipePool belongs to a Loop's goroutine.
type pipePool struct {
	idle []*pipe
	out  int // given away
	most int // of them
}

func newPipePool() pipePool {
	l := pipePool{most: mostPipes}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		l.most = int(min(mostPipes, lim.Cur/pipeShare+1))
	}
	return l
}

// get returns an empty pipe; nil when there are too many, or no descriptors, which only costs a copy.
func (l *pipePool) get() *pipe {
	if l.out >= l.most {
		return nil
	}
	if n := len(l.idle); n > 0 {
		p := l.idle[n-1]
		l.idle = l.idle[:n-1]
		l.out++
		return p
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1]}
	// Refused beyond the user's share (pipe-user-pages-soft); it works with the size it has.
	_, _ = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	l.out++
	return p
}

// put takes back a pipe. One with something in it is closed.
func (l *pipePool) put(p *pipe) {
	l.out--
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
