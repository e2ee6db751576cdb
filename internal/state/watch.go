package state

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Action is what has happened to a sandbox. Where Docker has an event of the kind, it has the same name.
type Action string

const (
	ActionCreate    Action = "create"
	ActionStart     Action = "start"
	ActionDie       Action = "die" // the command has ended
	ActionRename    Action = "rename"
	ActionPublish   Action = "publish"   // a port was published while the sandbox runs
	ActionUnpublish Action = "unpublish" // a published port was closed while the sandbox runs
	ActionDestroy   Action = "destroy"   // the directory is gone
)

// Event is one change of a sandbox.
type Event struct {
	Action Action
	Time   time.Time
	Record Record // as it is after the event; of one that is gone, as it was last
	// ExitCode is that of ActionDie; OldName that of ActionRename; Port that of ActionPublish and ActionUnpublish, in the form of
	// docker ps.
	ExitCode int
	OldName  string
	Port     string
}

// sweepInterval is how often a Watcher looks for supervisors that were killed, which the kernel reports to no one.
const sweepInterval = time.Second

// Watcher reports changes of the sandboxes of a directory, by inotify: there is no process that all of them report to. Its methods
// must not be called concurrently.
type Watcher struct {
	dir     *Dir
	f       *os.File            // the inotify instance
	known   map[string]*watched // by the name of the directory
	byWatch map[int32]string    // name of the directory by watch descriptor
	pending []Event
	checked time.Time // when sweep was called last
}

// watched is a sandbox as a Watcher knows it.
type watched struct {
	record   Record // zero before it could be read
	died     bool
	watch    int32
	reported bool // ActionCreate was reported, or the sandbox was there before the Watcher
}

// Watch returns a Watcher, whose events are those after the call, and the records of the sandboxes at that time.
func (d *Dir) Watch() (*Watcher, []Record, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, &Error{"watch", os.NewSyscallError("inotify_init1", err)}
	}
	w := &Watcher{dir: d, f: os.NewFile(uintptr(fd), "inotify"), known: map[string]*watched{}, byWatch: map[int32]string{}}
	if _, err := w.add(d.path, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO); err != nil {
		w.Close()
		return nil, nil, &Error{"watch", err}
	}
	if _, err := d.ListAll(); err != nil { // settles supervisors that were killed
		w.Close()
		return nil, nil, err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		w.Close()
		return nil, nil, &Error{"watch", err}
	}
	var records []Record
	for _, entry := range entries {
		if isSandbox(entry) {
			w.appear(entry.Name(), true)
			// The record was read after the watch was added, so every later change is reported.
			if s := w.known[entry.Name()]; s != nil && s.record.ID != "" {
				records = append(records, s.record)
			}
		}
	}
	w.checked = time.Now()
	return w, records, nil
}

// Close ends the watch.
func (w *Watcher) Close() error { return w.f.Close() }

// add watches a path. The inotify instance has no other user, so its descriptor stays valid.
func (w *Watcher) add(path string, mask uint32) (watch int32, err error) {
	conn, err := w.f.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctlErr := conn.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), path, mask|unix.IN_ONLYDIR)
		watch = int32(n)
	})
	return watch, errors.Join(ctlErr, os.NewSyscallError("inotify_add_watch", err))
}

// appear begins to watch the directory of a sandbox.
func (w *Watcher) appear(name string, before bool) {
	if w.known[name] != nil {
		return
	}
	watch, err := w.add(filepath.Join(w.dir.path, name), unix.IN_CREATE|unix.IN_MOVED_TO)
	if err != nil {
		return // it is gone
	}
	s := &watched{watch: watch, reported: before}
	w.known[name], w.byWatch[watch] = s, name
	if before {
		s.record, _ = view(filepath.Join(w.dir.path, name))
		s.died = s.record.Status == Lingering || s.record.Status == Exited
		return
	}
	w.read(name)
}

// read compares the record of a sandbox with what is known of it.
func (w *Watcher) read(name string) {
	s := w.known[name]
	if s == nil {
		return
	}
	now, err := view(filepath.Join(w.dir.path, name))
	if err != nil {
		return
	}
	old := s.record
	s.record = now
	if !s.reported {
		s.reported = true
		w.event(Event{Action: ActionCreate, Time: now.Created, Record: now})
	}
	if old.Name != "" && old.Name != now.Name {
		w.event(Event{Action: ActionRename, Record: now, OldName: old.Name})
	}
	began := old.Status == "" || old.Status == Created
	if began && now.Status != Created {
		w.event(Event{Action: ActionStart, Time: now.Started, Record: now})
	}
	if !began && now.Status == Running {
		for _, port := range now.Ports {
			if !slices.Contains(old.Ports, port) {
				w.event(Event{Action: ActionPublish, Record: now, Port: port})
			}
		}
		for _, port := range old.Ports {
			if !slices.Contains(now.Ports, port) {
				w.event(Event{Action: ActionUnpublish, Record: now, Port: port})
			}
		}
	}
	if (now.Status == Lingering || now.Status == Exited) && now.ExitCode != nil {
		w.die(s, *now.ExitCode)
	}
}

func (w *Watcher) die(s *watched, code int) {
	if !s.died && s.record.ID != "" {
		s.died = true
		w.event(Event{Action: ActionDie, Record: s.record, ExitCode: code})
	}
}

// vanish ends the watch of a directory that is gone.
func (w *Watcher) vanish(name string) {
	s := w.known[name]
	if s == nil {
		return
	}
	delete(w.known, name)
	delete(w.byWatch, s.watch)
	if s.record.ID == "" {
		return
	}
	if s.record.Status != Created { // a start that failed has no command that could die
		w.die(s, killedCode)
	}
	w.event(Event{Action: ActionDestroy, Record: s.record})
}

func (w *Watcher) event(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	w.pending = append(w.pending, e)
}

// Next returns the next event. It waits until there is one, or ctx ends.
func (w *Watcher) Next(ctx context.Context) (Event, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for len(w.pending) == 0 {
		if err := ctx.Err(); err != nil {
			return Event{}, err
		}
		if err := w.fill(ctx); err != nil {
			return Event{}, &Error{"watch", err}
		}
	}
	e := w.pending[0]
	w.pending = w.pending[1:]
	return e, nil
}

// fill reads what inotify reports, and waits for it at most until the next sweep.
func (w *Watcher) fill(ctx context.Context) error {
	if time.Since(w.checked) >= sweepInterval {
		w.sweep()
		w.checked = time.Now()
	}
	_ = w.f.SetReadDeadline(w.checked.Add(sweepInterval))
	if ctx.Err() != nil { // the deadline of its end may just have been replaced
		return nil
	}
	buf := make([]byte, 64<<10)
	n, err := w.f.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return err
	}
	for buf = buf[:n]; len(buf) >= unix.SizeofInotifyEvent; {
		raw := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0]))
		end := unix.SizeofInotifyEvent + int(raw.Len)
		name := strings.TrimRight(string(buf[unix.SizeofInotifyEvent:end]), "\x00")
		w.handle(raw.Wd, raw.Mask, name)
		buf = buf[end:]
	}
	return nil
}

// handle takes one report of inotify.
func (w *Watcher) handle(watch int32, mask uint32, name string) {
	box, inside := w.byWatch[watch]
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		w.rescan()
	case inside && name == recordFile:
		w.read(box)
	case inside:
		if code, ok := exitName(name); ok {
			w.read(box)
			s := w.known[box]
			if s.record.Status == Created { // the record was replaced and removed before it could be read
				s.record.Status = Running
				w.event(Event{Action: ActionStart, Record: s.record})
			}
			w.die(s, code)
		}
	case len(name) != ShortIDLen || !isHex(name):
	case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		w.appear(name, false)
	case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
		w.vanish(name)
	}
}

// rescan compares everything, after inotify has lost reports.
func (w *Watcher) rescan() {
	entries, err := os.ReadDir(w.dir.path)
	if err != nil {
		return
	}
	exist := map[string]bool{}
	for _, entry := range entries {
		if isSandbox(entry) {
			exist[entry.Name()] = true
			w.appear(entry.Name(), false)
			w.read(entry.Name())
		}
	}
	for name := range w.known {
		if !exist[name] {
			w.vanish(name)
		}
	}
}

// sweep has the directories of supervisors that were killed settled, which inotify then reports.
func (w *Watcher) sweep() {
	for name, s := range w.known {
		if !s.died && isDead(filepath.Join(w.dir.path, name)) {
			_, _ = w.dir.ListAll()
			w.read(name) // the record could not be written, if inotify reports nothing
		}
	}
}

// settlePatience is how long a supervisor that has reported the exit code may take to complete or remove its directory.
const settlePatience = time.Second

// settled waits until a sandbox whose command has ended is recorded as Lingering or Exited, or is gone: what the caller of Wait looks
// at next agrees with the exit code.
func (w *Watcher) settled(ctx context.Context, r Record) {
	for end := time.Now().Add(settlePatience); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		now, err := view(w.dir.PathOf(r))
		if err != nil || now.ExitCode != nil && (now.Status == Lingering || isDead(w.dir.PathOf(r))) {
			return
		}
	}
}

// Wait waits until the command of a sandbox has ended and returns its exit code.
func (d *Dir) Wait(ctx context.Context, r Record) (exitCode int, err error) {
	w, now, err := d.Watch()
	if err != nil {
		return 0, err
	}
	defer w.Close()
	i := slices.IndexFunc(now, func(x Record) bool { return x.ID == r.ID })
	if i < 0 {
		return 0, notFound(r.Name)
	}
	if code := now[i].ExitCode; code != nil {
		return *code, nil
	}
	for {
		e, err := w.Next(ctx)
		switch {
		case err != nil:
			return 0, err
		case e.Record.ID != r.ID:
		case e.Action == ActionDie:
			w.settled(ctx, e.Record)
			return e.ExitCode, nil
		case e.Action == ActionDestroy:
			return 0, notFound(r.Name)
		}
	}
}
