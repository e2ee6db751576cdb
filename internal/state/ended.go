package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is kept of ended sandboxes. The oldest go first; each call that reads the directory enforces them.
const (
	// maxEnded is their number. More than fills a screen is hard to read, and each start looks whether they are live: some 2 µs
	// for each.
	maxEnded = 32
	// maxEndedAge is long enough to find on a Monday what ended on a Friday, or during a week's absence.
	maxEndedAge = 7 * 24 * time.Hour
	// maxEndedBytes is the size of all their files. XDG_RUNTIME_DIR is in memory, see logLimit: this is the output of four
	// sandboxes that wrote as much as they could. The newest one stays in any case.
	maxEndedBytes = 32 << 20
)

// exitPrefix and a number are the name of an empty file that says with which code a sandbox has ended. It needs no space, so the
// code is known when the record cannot be written on a full disk; and inotify reports its name even if the directory is removed
// at once (Watcher).
const exitPrefix = "exit."

// killedCode is the exit code of a sandbox whose supervisor was killed: 128 + SIGKILL. killedText is the reason.
const (
	killedCode = 137
	killedText = "the supervisor was killed"
)

// End ends the Entry of a sandbox that has ended with the exit code: like Close it removes the directory, unless Record.Keep is
// set. The directory then stays, with status Exited, and can be found by LookupAny; but not that of a sandbox that never was
// more than Created. cause, if not nil, is the reason of an end that
// the command did not bring about.
func (e *Entry) End(exitCode int, cause error) error {
	kept, err := e.end(exitCode, cause)
	if !kept {
		return err
	}
	// e.mu is not held: Rename takes it under the outer lock.
	if unlock, lockErr := e.dir.lock(); lockErr == nil {
		_, _ = e.dir.sweep() // enforces the bounds
		unlock()
	}
	return err
}

func (e *Entry) end(exitCode int, cause error) (kept bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false, nil
	}
	e.closed = true
	r, err := readRecord(e.path)
	if err != nil || r.Status == Created {
		return false, e.remove()
	}
	if f, err := os.OpenFile(filepath.Join(e.path, exitPrefix+strconv.Itoa(exitCode)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		f.Close()
	}
	if !r.Keep {
		return false, e.remove()
	}
	end := func(r *Record) {
		if r.ExitCode == nil { // Lingering has set it
			r.ExitCode = &exitCode
		}
		if cause != nil {
			r.Error = cause.Error()
		}
		finish(r, time.Now())
	}
	if err = e.update(end); err != nil {
		// The output may be what fills the disk. Its older half is worth less than the record.
		os.Remove(filepath.Join(e.path, oldLogFile))
		err = e.update(end)
	}
	os.Remove(e.SocketPath())
	if err == nil {
		settled(e.path)
	} // else settle takes the code from the name of the file
	return true, errors.Join(err, e.lock.Close())
}

// finish makes r the record of a sandbox that has ended.
func finish(r *Record, at time.Time) {
	r.Status, r.Finished, r.Ports = Exited, at.UTC(), nil
}

// settle returns the record of a directory that no supervisor holds. It completes the record if the supervisor was killed, or could
// not write it. ok is false if the directory is not to be kept. The caller holds the outer lock.
func settle(path string) (r Record, ok bool) {
	stored, err := readRecord(path)
	if err != nil || !stored.Keep || stored.Status == Created {
		return stored, false
	}
	if stored.Status == Exited {
		settled(path) // a supervisor of an earlier version has left the lock file
		return stored, true
	}
	r = completed(path, stored)
	if writeRecord(path, &r) == nil { // where that fails, on a full disk, the next call does the same
		settled(path)
	}
	os.Remove(filepath.Join(path, socketFile))
	return r, true
}

// settled removes the lock file of an ended sandbox whose record is complete, so that a start knows it without reading the record. A
// missing lock file is a lock that nobody holds.
func settled(path string) { os.Remove(filepath.Join(path, lockName)) }

// view is the record of a sandbox for a reader that does not hold the outer lock: if no supervisor holds the sandbox's lock, as settle
// would complete it.
func view(path string) (Record, error) {
	r, err := readRecord(path)
	if err == nil && r.Keep && r.Status != Created && r.Status != Exited && isDead(path) {
		r = completed(path, r)
	}
	return r, err
}

// completed is the record r of a sandbox whose supervisor has ended without writing it.
func completed(path string, r Record) Record {
	code, at, known := exitMark(path)
	if !known {
		code, at = killedCode, time.Now()
		r.Error = killedText
	}
	if r.ExitCode == nil {
		r.ExitCode = &code
	}
	finish(&r, at)
	return r
}

// exitMark reads the exit code that End has left as the name of a file, and when that was.
func exitMark(path string) (code int, at time.Time, ok bool) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, at, false
	}
	for _, entry := range entries {
		if code, ok := exitName(entry.Name()); ok {
			at = time.Now()
			if info, err := entry.Info(); err == nil {
				at = info.ModTime()
			}
			return code, at, true
		}
	}
	return 0, at, false
}

func exitName(name string) (code int, ok bool) {
	digits, ok := strings.CutPrefix(name, exitPrefix)
	if !ok {
		return 0, false
	}
	code, err := strconv.Atoi(digits)
	return code, err == nil
}

// retain removes what exceeds the bounds and returns the rest. The caller holds the outer lock.
func (d *Dir) retain(ended []Record) []Record {
	slices.SortFunc(ended, func(a, b Record) int { return b.Finished.Compare(a.Finished) })
	var total int64
	kept := ended[:0]
	for i, r := range ended {
		path := d.PathOf(r)
		size := dirSize(path)
		if i > 0 && (len(kept) >= maxEnded || total+size > maxEndedBytes) || time.Since(r.Finished) > maxEndedAge {
			os.RemoveAll(path)
			continue
		}
		total += size
		kept = append(kept, r)
	}
	return kept
}

// dirSize is the size of the files of a directory, in bytes.
func dirSize(path string) (n int64) {
	entries, _ := os.ReadDir(path)
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
	}
	return n
}

// Size is the number of bytes that the files of a sandbox's directory have.
func (d *Dir) Size(r Record) int64 { return dirSize(d.PathOf(r)) }

// Ended reports whether the sandbox has ended: its supervisor no longer holds the lock, or the directory is gone.
func (d *Dir) Ended(r Record) bool { return isDead(d.PathOf(r)) }

// Remove removes the directory of an ended sandbox. The error is ErrRunning, by errors.Is, if it is live, and ErrNotFound if it is
// gone.
func (d *Dir) Remove(r Record) error {
	unlock, err := d.lock()
	if err != nil {
		return &Error{"remove", err}
	}
	defer unlock()
	path := d.PathOf(r)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return notFound(r.Name)
	}
	if !isDead(path) {
		return &refError{fmt.Sprintf("cannot remove sandbox %q: sandbox is running: stop the sandbox before removing or force remove", r.Name), ErrRunning}
	}
	if err := os.RemoveAll(path); err != nil {
		return &Error{"remove", err}
	}
	return nil
}

// dropEnded removes every ended sandbox, to make space on a full disk. The caller holds the outer lock.
func (d *Dir) dropEnded() {
	_, ended, _ := d.read(true)
	for _, r := range ended {
		os.RemoveAll(d.PathOf(r))
	}
}

// claim makes name free for the sandbox of the id self: it is an error, ErrNameInUse by errors.Is, if another live sandbox has it. An
// ended one gives it up. The caller holds the outer lock.
func (d *Dir) claim(name, self string) error {
	live, ended, err := d.read(true)
	if err != nil {
		return &Error{"create", err}
	}
	if err := conflict(live, name, self); err != nil {
		return err
	}
	for i := range ended {
		if ended[i].Name == name && ended[i].ID != self {
			d.giveUpName(&ended[i])
		}
	}
	return nil
}

// conflict is the error of a name that a live sandbox other than self has.
func conflict(live []Record, name, self string) error {
	for _, r := range live {
		if r.Name == name && r.ID != self {
			return &refError{fmt.Sprintf("Conflict. The name %q is already in use by sandbox %q. "+
				"You have to stop that sandbox to be able to reuse that name.", "/"+name, r.ID), ErrNameInUse}
		}
	}
	return nil
}

// yield has ended sandboxes give up a name that a later one has: a start takes the name without reading their records. The caller
// holds the outer lock.
func (d *Dir) yield(live, ended []Record) {
	taken := map[string]bool{}
	for _, r := range live {
		taken[r.Name] = true
	}
	latest := slices.SortedFunc(slices.Values(ended), func(a, b Record) int { return b.Created.Compare(a.Created) })
	for _, r := range latest {
		if taken[r.Name] {
			i := slices.IndexFunc(ended, func(x Record) bool { return x.ID == r.ID })
			d.giveUpName(&ended[i])
		}
		taken[r.Name] = true
	}
}

// giveUpName renames an ended sandbox to its short id, an underscore and its old name, as docker compose renames a container that it
// replaces: an ended sandbox cannot be started again, so there is no use in reserving the name, and its record and output stay. The
// caller holds the outer lock.
func (d *Dir) giveUpName(r *Record) {
	r.Name = r.ShortID() + "_" + r.Name
	if path := d.PathOf(*r); writeRecord(path, r) != nil {
		os.RemoveAll(path) // a full disk; what was just started is more important
	}
}

// Rename gives a live sandbox another name, as Create claims one.
func (e *Entry) Rename(name string) error {
	unlock, err := e.dir.lock()
	if err != nil {
		return &Error{"rename", err}
	}
	defer unlock()
	if err := e.dir.claim(name, e.id); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return notFound(e.name)
	}
	before := e.name
	e.name = name
	if err := e.update(func(*Record) {}); err != nil {
		e.name = before
		return err
	}
	return nil
}

// Rename gives an ended sandbox another name. A live one is renamed by its supervisor (Entry.Rename); the error is then ErrRunning.
func (d *Dir) Rename(r Record, name string) error {
	unlock, err := d.lock()
	if err != nil {
		return &Error{"rename", err}
	}
	defer unlock()
	path := d.PathOf(r)
	if !isDead(path) {
		return &refError{"sandbox is running", ErrRunning}
	}
	stored, ok := settle(path)
	if !ok {
		return notFound(r.Name)
	}
	if err := d.claim(name, r.ID); err != nil {
		return err
	}
	stored.Name = name
	if err := writeRecord(path, &stored); err != nil {
		return &Error{"rename", err}
	}
	return nil
}

func notFound(ref string) error { return &refError{"No such sandbox: " + ref, ErrNotFound} }
