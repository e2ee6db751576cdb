package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/procstat"
)

// Record is the content of state.json. Fields may be added, but the meaning of a field does not change: programs of other
// versions read the file.
type Record struct {
	ID      string    `json:"id"` // 64 hexadecimal digits
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Status  Status    `json:"status"`

	Supervisor Process  `json:"supervisor"`
	InitPID    int      `json:"initPid,omitempty"`  // PID 1 of the sandbox, in the supervisor's pid namespace
	ExitCode   *int     `json:"exitCode,omitempty"` // of the command, once the status is Lingering
	Command    []string `json:"command"`

	Labels map[string]string `json:"labels,omitempty"`

	// Network is the mode: "bridge", "host", "none", "container:ID", or "attach" for a namespace that another program made;
	// Command then names that namespace.
	Network  string `json:"network"`
	Hostname string `json:"hostname,omitempty"`
	NetNS    uint64 `json:"netns,omitempty"` // inode of the network namespace

	Interface string         `json:"interface,omitempty"`
	Link      string         `json:"link,omitempty"`     // kind of link device in use
	Datapath  string         `json:"datapath,omitempty"` // "stack" or "splice"
	MAC       string         `json:"mac,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
	Subnets   []netip.Prefix `json:"subnets,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`  // one for each subnet, in the same order
	Addresses []netip.Addr   `json:"addresses,omitempty"` // of the guest, one for each subnet, in the same order
	// Ports are the published ports at the time the record was written, in the form of docker ps. The control socket has the
	// current ones.
	Ports []string `json:"ports,omitempty"`
}

// Status is the phase of a sandbox's life.
type Status string

const (
	Created   Status = "created"   // the sandbox is being set up
	Running   Status = "running"   // the command runs
	Lingering Status = "lingering" // the command has exited; other sandboxes still use the network
)

// Process identifies a process even after its pid was reused.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // in clock ticks since boot (proc(5), /proc/pid/stat field 22)
}

// Open returns a pidfd of the process (pidfd_open(2)), which the caller must close. The error is unix.ESRCH if the process has
// ended.
func (p Process) Open() (fd int, err error) {
	if fd, err = unix.PidfdOpen(p.PID, 0); err != nil {
		return -1, err
	}
	// The start time is compared after the pidfd was opened: it refers to the process that has the pid at that moment, and the
	// pid cannot be reused while the pidfd is open and that process lives.
	if stat, err := procstat.Read(p.PID); err != nil || stat.Start != p.StartTime {
		unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// ShortIDLen is the number of digits of an id that docker ps shows.
const ShortIDLen = 12

// ShortID returns the first ShortIDLen digits.
func (r *Record) ShortID() string { return ShortID(r.ID) }

// ShortID returns the first ShortIDLen digits of id.
func ShortID(id string) string { return id[:min(len(id), ShortIDLen)] }

// Self returns the Process of the caller.
func Self() (Process, error) {
	stat, err := procstat.Self()
	if err != nil {
		return Process{}, &Error{"create", err}
	}
	return Process{PID: os.Getpid(), StartTime: stat.Start}, nil
}

// maxRecord is the maximum size of a state.json in bytes: a command line may have 2 MiB (MAX_ARG_STRLEN and ARG_MAX), and JSON
// may need six bytes for one of it.
const maxRecord = 16 << 20

// readRecord reads the record of a sandbox's directory.
func readRecord(dir string) (Record, error) {
	var r Record
	f, err := os.Open(filepath.Join(dir, recordFile))
	if err != nil {
		return r, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if !isID(r.ID) {
		return r, fmt.Errorf("%s: bad id", f.Name())
	}
	return r, nil
}

// writeRecord replaces the record. A concurrent reader sees either the old one or the new one.
func writeRecord(dir string, r *Record) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if len(text) >= maxRecord {
		return errors.New("record too large")
	}
	path := filepath.Join(dir, recordFile)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// idLen is the length of an id in hexadecimal digits. Docker's ids have the same.
const idLen = 64

func isID(s string) bool {
	return len(s) == idLen && isHex(s)
}

func isHex(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}
