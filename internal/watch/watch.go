package watch

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// PathInterval is how often a path is checked without an inotify event.
const PathInterval = time.Second

// Watch watches one file, process or path. Its methods may be called from any goroutine.
type Watch struct {
	c    chan struct{}
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup
	file *os.File // epoll or inotify instance, closed by Close to end the goroutine that reads it; may be nil
}

// C returns a channel that is closed when the watched object has ended, unless Close is called before.
func (w *Watch) C() <-chan struct{} { return w.c }

// Close ends the watch and waits for its goroutines. It may be called more than once.
func (w *Watch) Close() {
	w.once.Do(func() {
		close(w.stop)
		if w.file != nil {
			w.file.Close()
		}
	})
	w.wg.Wait()
}

func newWatch(file *os.File) *Watch {
	return &Watch{c: make(chan struct{}), stop: make(chan struct{}), file: file}
}

// File watches f for any event: data, end of file, an error or, for a pidfd, the end of the process. f remains the caller's and
// must stay open until Close. The error EPERM means that f is of a kind without events, such as a regular file.
func File(f *os.File) (*Watch, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	var aerr error
	err = conn.Control(func(fd uintptr) {
		aerr = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP})
	})
	if err = errors.Join(err, aerr); err == nil {
		err = unix.SetNonblock(ep, true) // package os registers only non-blocking descriptors in Go's poller
	}
	if err != nil {
		unix.Close(ep)
		return nil, err
	}
	w := newWatch(os.NewFile(uintptr(ep), "epoll"))
	rc, err := w.file.SyscallConn()
	if err != nil {
		w.file.Close()
		return nil, err
	}
	w.wg.Go(func() {
		var event [1]unix.EpollEvent
		err := rc.Read(func(fd uintptr) bool {
			n, err := unix.EpollWait(int(fd), event[:], 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err == nil {
			close(w.c)
		}
	})
	return w, nil
}

// Path watches the object at path. unchanged reports whether it is still the same object; it is called on a goroutine of the Watch,
// first at once, then whenever the directory reports a change, and every PathInterval. When it returns false, the watch has ended.
func Path(path string, unchanged func() bool) *Watch {
	w := newWatch(nil)
	changed := make(chan struct{}, 1)
	if file := directoryEvents(filepath.Dir(path)); file != nil {
		w.file = file
		w.wg.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				if _, err := file.Read(buf); err != nil {
					return
				}
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		})
	}
	w.wg.Go(func() {
		t := time.NewTicker(PathInterval)
		defer t.Stop()
		for unchanged() {
			select {
			case <-changed:
			case <-t.C:
			case <-w.stop:
				return
			}
		}
		close(w.c)
	})
	return w
}

// directoryEvents returns an inotify instance that watches dir, or nil if there is none; then only the interval remains.
func directoryEvents(dir string) *os.File {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	const events = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_UNMOUNT
	if _, err := unix.InotifyAddWatch(fd, dir, events|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "inotify")
}
