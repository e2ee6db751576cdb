package api

import (
	"net"
	"sync"
)

// limitedListener accepts no connection while maxConns are open: further ones wait in the kernel's backlog.
type limitedListener struct {
	*net.UnixListener
	slots chan struct{} // holds one element for each open connection
	done  chan struct{} // closed by Close
	once  sync.Once
}

func newLimitedListener(l *net.UnixListener) *limitedListener {
	return &limitedListener{UnixListener: l, slots: make(chan struct{}, maxConns), done: make(chan struct{})}
}

// Accept waits for a slot and then for a connection.
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

// Close makes Accept return, whether it waits for a slot or for a connection.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.UnixListener.Close()
}

// limitedConn frees its slot when it is closed.
type limitedConn struct {
	*net.UnixConn
	release func()
}

func (c *limitedConn) Close() error {
	err := c.UnixConn.Close()
	c.release()
	return err
}
