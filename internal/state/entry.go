package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
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
	logFile    = "output.log"
	oldLogFile = "output.log.1"
)

// Errors of Create and Lookup; the text of those returned has the name in it.
var (
	ErrNameInUse = errors.New("name in use")
	ErrNotFound  = errors.New("no such sandbox")
	ErrAmbiguous = errors.New("ambiguous id")
)

// refError is one of the above in the words of docker.
type refError struct {
	text string
	kind error
}

func (e *refError) Error() string { return e.text }
func (e *refError) Unwrap() error { return e.kind }

// Entry is the directory of a live sandbox, held by its supervisor. Its methods may be called concurrently.
type Entry struct {
	dir  *Dir
	path string
	id   string
	name string
	lock *os.File

	mu     sync.Mutex
	closed bool
}

// Create makes the directory of a new sandbox, with a Record of status Created, and claims the name for it; an empty
// name becomes the short id. The error is ErrNameInUse (by errors.Is) when a live sandbox has it. The caller must
// Close the Entry.
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
	live, err := d.sweep()
	if err != nil {
		return nil, &Error{"create", err}
	}
	if i := slices.IndexFunc(live, func(r Record) bool { return r.Name == name }); i >= 0 {
		return nil, &refError{fmt.Sprintf("Conflict. The name %q is already in use by sandbox %q. "+
			"You have to stop that sandbox to be able to reuse that name.", "/"+name, live[i].ID), ErrNameInUse}
	}
	e, err := d.makeEntry()
	if err != nil {
		return nil, &Error{"create", err}
	}
	if e.name = name; name == "" {
		e.name = ShortID(e.id)
	}
	record := Record{ID: e.id, Name: e.name, Created: time.Now().UTC(), Status: Created, Supervisor: self}
	if err := writeRecord(e.path, &record); err != nil {
		e.remove()
		return nil, &Error{"create", err}
	}
	return e, nil
}

// makeEntry draws an id, and makes and locks its directory. The outer lock is held.
func (d *Dir) makeEntry() (*Entry, error) {
	for {
		var raw [idLen / 2]byte
		rand.Read(raw[:])
		e := &Entry{dir: d, id: hex.EncodeToString(raw[:])}
		e.path = filepath.Join(d.path, ShortID(e.id))
		// A short id of digits only would be taken for a number by many a tool; Docker draws again too.
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

// ID is the sandbox's id, 64 hexadecimal digits.
func (e *Entry) ID() string { return e.id }

// Name is the sandbox's name, never empty.
func (e *Entry) Name() string { return e.name }

// Path is the sandbox's directory.
func (e *Entry) Path() string { return e.path }

// SocketPath is where the control socket belongs.
func (e *Entry) SocketPath() string { return filepath.Join(e.path, socketFile) }

// Update reads the Record, has it changed by f, and replaces it. Id and name stay what they are. After Close it does
// nothing.
func (e *Entry) Update(f func(*Record)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
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

// Record reads the Record back.
func (e *Entry) Record() (Record, error) {
	r, err := readRecord(e.path)
	if err != nil {
		return r, &Error{"lookup", err}
	}
	return r, nil
}

// Close removes the directory and lets the name go. It may be called more than once.
func (e *Entry) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	// Not under the outer lock: who sees half of it sees a lock that is held, or a directory without a record.
	return e.remove()
}

func (e *Entry) remove() error {
	err := os.RemoveAll(e.path)
	return errors.Join(err, e.lock.Close())
}

// List returns the live sandboxes, the youngest first, and removes what dead ones left behind.
func (d *Dir) List() ([]Record, error) {
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

// sweep reads the records of the live and removes the directories of the dead. The outer lock is held, so nobody is
// between making a directory and locking it.
func (d *Dir) sweep() ([]Record, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var live []Record
	for _, entry := range entries {
		// Touch nothing that is not of our making.
		if !entry.IsDir() || len(entry.Name()) != ShortIDLen || !isHex(entry.Name()) {
			continue
		}
		path := filepath.Join(d.path, entry.Name())
		if isDead(path) {
			os.RemoveAll(path)
			continue
		}
		if r, err := readRecord(path); err == nil {
			live = append(live, r)
		}
	}
	return live, nil
}

// isDead tries for the lock of a sandbox, shared so that two who try do not take each other for the owner.
func isDead(path string) bool {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
}

// Lookup finds a live sandbox by its id, its name, or the beginning of its id, in that order. The error is
// ErrNotFound or ErrAmbiguous by errors.Is.
func (d *Dir) Lookup(ref string) (Record, error) {
	records, err := d.List()
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
		return Record{}, &refError{"No such sandbox: " + ref, ErrNotFound}
	case 1:
		return found[0], nil
	}
	return Record{}, &refError{"multiple IDs found with provided prefix: " + ref, ErrAmbiguous}
}

// SocketPath is where the control socket of a sandbox is.
func (d *Dir) SocketPath(r Record) string { return filepath.Join(d.path, r.ShortID(), socketFile) }
