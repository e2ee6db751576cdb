package api

import (
	"net"
	"sync"
)

// limitedListener accepts no more while maxConns connections are open: the others wait in the kernel's backlog.
type limitedListener struct {
	*net.UnixListener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func newLimitedListener(l *net.UnixListener) *limitedListener {
	return &limitedListener{UnixListener: l, slots: make(chan struct{}, maxConns), done: make(chan struct{})}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.AcceptUnix()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{UnixConn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.UnixListener.Close()
}

// limitedConn gives its slot back when it is closed.
type limitedConn struct {
	*net.UnixConn
	release func()
}

func (c *limitedConn) Close() error {
	err := c.UnixConn.Close()
	c.release()
	return err
}
