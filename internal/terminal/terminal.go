package terminal

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"rootlessnet/internal/signals"
)

// drain is how long the end waits for output that the command has left in its terminal. The terminal ends with its last user;
// a process of another sandbox that has opened it by its path could keep it open.
const drain = time.Second

// Terminal is the pseudo terminal of a command. The zero value is none. Its methods must not be called concurrently.
type Terminal struct {
	master *os.File
	in     *os.File // read from, if not nil
	out    *os.File // written to, if not nil

	raw     *term.State // of in, before it was in raw mode
	wake    [2]*os.File // a byte ends the reading of in
	unwatch func()
	reading sync.WaitGroup
	copied  chan struct{} // closed when the output has ended
	once    sync.Once
}

// Open makes the terminal and returns the slave side, which the caller must close when the command has it. What is read of in is
// typed into the terminal, and what the command prints is written to out; either may be nil. Both stay the caller's, and in use until
// Finish.
func (t *Terminal) Open(in, out *os.File) (slave *os.File, err error) {
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
func (t *Terminal) resize() {
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

// Relay begins to copy in both directions, and puts in, if it is a terminal, into raw mode: every key is for the command's terminal,
// which has the size of the caller's from now on. Without Open it does nothing.
func (t *Terminal) Relay() {
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
	if isTerminal(t.in) || isTerminal(t.out) {
		if isTerminal(t.in) {
			t.raw, _ = term.MakeRaw(int(t.in.Fd()))
		}
		t.unwatch = signals.TerminalChanges(t.changed)
		t.resize() // it may have changed since Open
	}
	if t.in == nil {
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	t.wake = [2]*os.File{r, w}
	t.reading.Go(t.read)
}

// changed follows a new size of the caller's terminal, and puts it into raw mode again: while this process was stopped, a shell had it.
func (t *Terminal) changed() {
	t.resize()
	if t.raw != nil {
		_, _ = term.MakeRaw(int(t.in.Fd())) // in the background the kernel stops this process again, as it should
	}
}

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// read types what is read of in into the terminal. At the end of the input it types the character for the end of file.
func (t *Terminal) read() {
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

// Finish ends the copying after the command's end, when its output has been copied, and restores the caller's terminal. It may be
// called in any state, and more than once.
func (t *Terminal) Finish() {
	t.once.Do(func() {
		if t.master == nil {
			return
		}
		if t.copied != nil {
			select {
			case <-t.copied:
			case <-time.After(drain):
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
