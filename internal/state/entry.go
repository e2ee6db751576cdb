package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Files of a sandbox's directory.
const (
	lockName   = "lock"
	recordFile = "state.json"
	socketFile = "api.sock"
	oldLogFile = LogFile + ".1"
)

// LogFile is the file with the latest output of a detached command, see Log.
const LogFile = "output.frames"

// Errors of Create, Lookup, Rename and Remove, by errors.Is. The text of the error that they return also contains the name.
var (
	ErrNameInUse = errors.New("name in use")
	ErrNotFound  = errors.New("no such sandbox")
	ErrAmbiguous = errors.New("ambiguous id")
	ErrRunning   = errors.New("sandbox is running") // of Remove
)

// refError is one of the errors above with the text that docker prints.
type refError struct {
	text string
	kind error
}

func (e *refError) Error() string { return e.text }
func (e *refError) Unwrap() error { return e.kind }

// Entry is the directory of a live sandbox, as its supervisor uses it. Its methods may be called concurrently.
type Entry struct {
	dir  *Dir
	path string
	id   string
	lock *os.File

	mu     sync.Mutex
	name   string
	closed bool
}

// Create makes the directory of a new sandbox, with a Record of status Created, and claims the name for it. An empty name
// becomes the short id. The error is ErrNameInUse, by errors.Is, if a live sandbox has the name; an ended one gives it up. The caller
// must Close or End the Entry.
func (d *Dir) Create(name string) (*Entry, error) {
	self, err := Self()
	if err != nil {
		return nil, err
	}
	unlock, err := d.lock()
	if err != nil {
		return nil, &Error{"create", err}
	}
	defer unlock()
	live, _, err := d.read(false) // an ended sandbox gives up the name later, see yield
	if err != nil {
		return nil, &Error{"create", err}
	}
	if err := conflict(live, name, ""); err != nil {
		return nil, err
	}
	e, err := d.makeEntry()
	if err != nil {
		return nil, &Error{"create", err}
	}
	if e.name = name; name == "" {
		e.name = ShortID(e.id)
	}
	record := Record{ID: e.id, Name: e.name, Created: time.Now().UTC(), Status: Created, Supervisor: self}
	if err = writeRecord(e.path, &record); err != nil {
		d.dropEnded() // they may be what fills the disk
		err = writeRecord(e.path, &record)
	}
	if err != nil {
		e.remove()
		return nil, &Error{"create", err}
	}
	return e, nil
}

// makeEntry chooses a random id, and makes and locks its directory. The caller holds the outer lock.
func (d *Dir) makeEntry() (*Entry, error) {
	for {
		var raw [idLen / 2]byte
		rand.Read(raw[:])
		e := &Entry{dir: d, id: hex.EncodeToString(raw[:])}
		e.path = filepath.Join(d.path, ShortID(e.id))
		// Programs would read a short id of decimal digits only as a number. Docker chooses another id, too.
		if strings.IndexFunc(ShortID(e.id), func(c rune) bool { return c > '9' }) < 0 {
			continue
		}
		err := os.Mkdir(e.path, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if e.lock, err = lockFile(filepath.Join(e.path, lockName), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			os.RemoveAll(e.path)
			return nil, err
		}
		return e, nil
	}
}

// ID returns the sandbox's id, 64 hexadecimal digits.
func (e *Entry) ID() string { return e.id }

// Name returns the sandbox's name, which is never empty.
func (e *Entry) Name() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.name
}

// Path returns the path of the sandbox's directory.
func (e *Entry) Path() string { return e.path }

// SocketPath returns the path for the control socket.
func (e *Entry) SocketPath() string { return filepath.Join(e.path, socketFile) }

// Update reads the Record, lets f change it, and replaces it. Changes of the id and the name are ignored. After Close it does
// nothing and returns nil.
func (e *Entry) Update(f func(*Record)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	return e.update(f)
}

// update does the work of Update. The caller holds e.mu.
func (e *Entry) update(f func(*Record)) error {
	r, err := readRecord(e.path)
	if err != nil {
		return &Error{"write", err}
	}
	f(&r)
	r.ID, r.Name = e.id, e.name
	if err := writeRecord(e.path, &r); err != nil {
		return &Error{"write", err}
	}
	return nil
}

// Record reads the Record.
func (e *Entry) Record() (Record, error) {
	r, err := readRecord(e.path)
	if err != nil {
		return r, &Error{"lookup", err}
	}
	return r, nil
}

// Close removes the directory, which frees the name. It may be called more than once.
func (e *Entry) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	// The outer lock is not needed: a concurrent reader of the half-removed directory finds the lock held or the record
	// missing, and skips the directory in either case.
	return e.remove()
}

func (e *Entry) remove() error {
	err := os.RemoveAll(e.path)
	return errors.Join(err, e.lock.Close())
}

// List returns the records of the live sandboxes, the newest first. It removes the directories of sandboxes whose supervisor was
// killed, except those that are kept.
func (d *Dir) List() ([]Record, error) {
	records, err := d.ListAll()
	return slices.DeleteFunc(records, func(r Record) bool { return r.Status == Exited }), err
}

// ListAll is List with the ended sandboxes that are kept, whose status is Exited.
func (d *Dir) ListAll() ([]Record, error) {
	unlock, err := d.lock()
	if err != nil {
		return nil, &Error{"list", err}
	}
	defer unlock()
	records, err := d.sweep()
	if err != nil {
		return nil, &Error{"list", err}
	}
	slices.SortFunc(records, func(a, b Record) int { return b.Created.Compare(a.Created) })
	return records, nil
}

// sweep reads the records of all sandboxes. It removes the directories of those that have ended and are not kept, or no longer.
// The caller holds the outer lock.
func (d *Dir) sweep() ([]Record, error) {
	live, ended, err := d.read(true)
	ended = d.retain(ended)
	d.yield(live, ended)
	return append(live, ended...), err
}

// read is sweep without the bounds of what is kept. Without the ended ones, which a start does not have to wait for, it reads of them
// only the records of those that nobody has settled. The caller holds the outer lock, so no process has made a directory that it has
// not locked yet.
func (d *Dir) read(withEnded bool) (live, ended []Record, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range entries {
		// Files that this package has not made are not removed.
		if !isSandbox(entry) {
			continue
		}
		path := filepath.Join(d.path, entry.Name())
		if !withEnded && isSettled(path) {
			continue
		}
		if isDead(path) {
			if r, ok := settle(path); ok {
				ended = append(ended, r)
			} else {
				os.RemoveAll(path)
			}
			continue
		}
		if r, err := readRecord(path); err == nil {
			live = append(live, r)
		}
	}
	return live, ended, nil
}

// isSandbox reports whether an entry of the state directory is a sandbox's directory, by its name.
func isSandbox(entry fs.DirEntry) bool {
	return entry.IsDir() && len(entry.Name()) == ShortIDLen && isHex(entry.Name())
}

// isSettled reports whether the sandbox at path has ended and its record says so: settled has then removed the lock file.
func isSettled(path string) bool {
	return errors.Is(unix.Faccessat(unix.AT_FDCWD, filepath.Join(path, lockName), unix.F_OK, 0), fs.ErrNotExist)
}

// isDead reports whether no supervisor holds the lock of the sandbox at path. It tries to take the lock in shared mode, so that
// two processes that try at the same time do not mistake each other for a supervisor.
func isDead(path string) bool {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
}

// Lookup finds a live sandbox by its id, its name, or the beginning of its id, in that order. The error is ErrNotFound or
// ErrAmbiguous, by errors.Is.
func (d *Dir) Lookup(ref string) (Record, error) {
	records, err := d.List()
	if err != nil {
		return Record{}, err
	}
	return find(records, ref)
}

// LookupAny is Lookup among the live sandboxes and the ended ones that are kept.
func (d *Dir) LookupAny(ref string) (Record, error) {
	records, err := d.ListAll()
	if err != nil {
		return Record{}, err
	}
	return find(records, ref)
}

func find(records []Record, ref string) (Record, error) {
	byName := func(r Record) bool { return r.Name == strings.TrimPrefix(ref, "/") }
	byID := func(r Record) bool { return r.ID == ref }
	for _, match := range []func(Record) bool{byID, byName} {
		if i := slices.IndexFunc(records, match); i >= 0 {
			return records[i], nil
		}
	}
	var found []Record
	if ref != "" {
		for _, r := range records {
			if strings.HasPrefix(r.ID, ref) {
				found = append(found, r)
			}
		}
	}
	switch len(found) {
	case 0:
		return Record{}, notFound(ref)
	case 1:
		return found[0], nil
	}
	return Record{}, &refError{"multiple IDs found with provided prefix: " + ref, ErrAmbiguous}
}

// PathOf returns the path of a sandbox's directory.
func (d *Dir) PathOf(r Record) string { return filepath.Join(d.path, r.ShortID()) }

// SocketPath returns the path of the control socket of a sandbox.
func (d *Dir) SocketPath(r Record) string { return filepath.Join(d.PathOf(r), socketFile) }
