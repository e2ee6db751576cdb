package sandbox

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"rootlessnet/internal/signals"
)

// terminalDrain is how long the end waits for output that the command has left in its terminal. The terminal ends with its last user;
// a process of another sandbox that has opened it by its path could keep it open.
const terminalDrain = time.Second

// terminal is the pseudo terminal of a command (Config.TTY): this process has the master side. The zero value is none.
type terminal struct {
	master *os.File
	in     *os.File // read from, if not nil
	out    *os.File // written to, if not nil
	log    *os.File // out, if it is the writing end of the log's pipe
	idle   *os.File // writing end of the empty standard input (Config.OpenStdin)

	raw     *term.State // of in, before it was in raw mode
	wake    [2]*os.File // a byte ends the reading of in
	unwatch func()
	reading sync.WaitGroup
	copied  chan struct{} // closed when the output has ended
	once    sync.Once
}

// open makes the terminal and returns the slave side. in may be nil; out, too.
func (t *terminal) open(in, out *os.File) (slave *os.File, err error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("pseudo terminal: %w", err)
	}
	defer func() {
		if err != nil {
			master.Close()
			err = fmt.Errorf("pseudo terminal: %w", err)
		}
	}()
	var number int
	err = control(master, func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, err
	}
	t.master, t.in, t.out = master, in, out
	t.resize()
	return slave, nil
}

// control calls f with the descriptor, which stays non-blocking.
func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// resize gives the terminal the size of the caller's.
func (t *terminal) resize() {
	for _, f := range []*os.File{t.in, t.out} {
		if f == nil {
			continue
		}
		var size *unix.Winsize
		err := control(f, func(fd int) (err error) {
			size, err = unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
			return err
		})
		if err == nil {
			_ = control(t.master, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) })
			return
		}
	}
}

// relay begins to copy in both directions, and puts the caller's terminal into raw mode: every key is for the command's terminal.
func (t *terminal) relay() {
	if t.master == nil {
		return
	}
	t.copied = make(chan struct{})
	go func() {
		defer close(t.copied)
		if t.out != nil {
			_, _ = io.Copy(t.out, t.master)
		}
		_, _ = io.Copy(io.Discard, t.master) // a closed output does not stop the command
	}()
	if t.in == nil {
		return
	}
	if fd := int(t.in.Fd()); term.IsTerminal(fd) {
		t.raw, _ = term.MakeRaw(fd)
		t.unwatch = signals.WindowChanges(t.resize)
		t.resize() // it may have changed since open
	}
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	t.wake = [2]*os.File{r, w}
	t.reading.Go(t.read)
}

// read types what is read of in into the terminal. At the end of the input it types the character for the end of file.
func (t *terminal) read() {
	in, quit := int(t.in.Fd()), int(t.wake[0].Fd())
	for buf := make([]byte, 4096); ; {
		p := []unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}, {Fd: int32(quit), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err == unix.EINTR {
			continue
		}
		if p[1].Revents != 0 {
			return
		}
		n, err := unix.Read(in, buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n <= 0 {
			_, _ = t.master.Write([]byte{4}) // VEOF's default, Ctrl-D
			return
		}
		if _, err := t.master.Write(buf[:n]); err != nil {
			return
		}
	}
}

// finish ends the copying after the command's end, when its output has been copied, and restores the caller's terminal.
func (t *terminal) finish() {
	t.once.Do(func() {
		defer t.log.Close()  // a nil file only reports an error
		defer t.idle.Close() // as well
		if t.master == nil {
			return
		}
		if t.copied != nil {
			select {
			case <-t.copied:
			case <-time.After(terminalDrain):
			}
		}
		_ = t.master.Close()
		if t.copied != nil {
			<-t.copied
		}
		if t.wake[1] != nil {
			_ = t.wake[1].Close() // the poll of the other end reports it
			t.reading.Wait()
			_ = t.wake[0].Close()
		}
		if t.unwatch != nil {
			t.unwatch()
		}
		if t.raw != nil {
			_ = term.Restore(int(t.in.Fd()), t.raw)
		}
	})
}

// close may be called in any state.
func (t *terminal) close() { t.finish() }

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
