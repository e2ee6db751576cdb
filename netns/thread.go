package netns

import (
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A Thread is an operating-system thread in another network namespace, which runs functions there: a socket belongs to the
// namespace of the thread that opened it, whichever thread uses it. The thread cannot return to its first namespace, which would
// need a capability over that namespace, and ends with Close. Do and Socket may be called concurrently.
type Thread struct {
	calls chan threadCall
	quit  chan struct{} // closed by Close
	ended chan struct{} // closed when the thread has ended
}

type threadCall struct {
	f    func() error
	done chan error // capacity 1: the thread does not wait for the caller
}

// Enter starts a thread in the network namespace at path. The caller needs CAP_SYS_ADMIN over it. The error is an *Error.
func Enter(path string) (*Thread, error) {
	fail := func(err error) (*Thread, error) {
		return nil, &Error{Op: "enter the network namespace " + path, Err: err}
	}
	ns, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer ns.Close()
	t := &Thread{calls: make(chan threadCall), quit: make(chan struct{}), ended: make(chan struct{})}
	entered := make(chan error)
	go t.run(int(ns.Fd()), entered)
	if err := <-entered; err != nil {
		<-t.ended
		return fail(err)
	}
	return t, nil
}

func (t *Thread) run(ns int, entered chan<- error) {
	defer close(t.ended)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, rather than serve others in that namespace
	err := unix.Setns(ns, unix.CLONE_NEWNET)
	entered <- err
	if err != nil {
		return
	}
	for {
		select {
		case c := <-t.calls:
			c.done <- c.f()
		case <-t.quit:
			return
		}
	}
}

// Do runs f on the thread, after the calls before, and returns its error; net.ErrClosed after Close.
func (t *Thread) Do(f func() error) error {
	c := threadCall{f, make(chan error, 1)}
	select {
	case t.calls <- c:
		return <-c.done
	case <-t.ended:
		return net.ErrClosed
	}
}

// Socket opens a socket in the namespace, non-blocking, of the address family of addr. kind is SOCK_STREAM or SOCK_DGRAM.
func (t *Thread) Socket(addr netip.Addr, kind int) (fd int, err error) {
	err = t.Do(func() (err error) {
		fd, err = openSocket(addr.Is6(), kind)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// Close waits for the call under way and ends the thread. It is called once.
func (t *Thread) Close() {
	close(t.quit)
	<-t.ended
}

// RunAt runs f in the network namespace at path, on a thread of its own.
func RunAt(path string, f func() error) error {
	t, err := Enter(path)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Do(f)
}
