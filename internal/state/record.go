package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Record is what state.json holds. Fields are added, never given another meaning.
type Record struct {
	ID      string    `json:"id"` // 64 hexadecimal digits
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Status  Status    `json:"status"`

	Supervisor Process  `json:"supervisor"`
	InitPID    int      `json:"initPid,omitempty"`  // in the caller's pid namespace
	ExitCode   *int     `json:"exitCode,omitempty"` // of the command, once Lingering
	Command    []string `json:"command"`

	// Network is the mode: "bridge", "host", "none" or "container:ID"; "attach" where the namespace is somebody else's,
	// whose Command says what was attached to.
	Network  string `json:"network"`
	Hostname string `json:"hostname,omitempty"`
	NetNS    uint64 `json:"netns,omitempty"` // inode of the network namespace

	Interface string         `json:"interface,omitempty"`
	Link      string         `json:"link,omitempty"`     // the kind in use
	Datapath  string         `json:"datapath,omitempty"` // stack or splice
	MAC       string         `json:"mac,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
	Subnets   []netip.Prefix `json:"subnets,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`  // one for each subnet, in the same order
	Addresses []netip.Addr   `json:"addresses,omitempty"` // of the guest, likewise
	// Ports are those bound when the record was written, as docker ps prints them; the control socket has them
	// live.
	Ports []string `json:"ports,omitempty"`
}

// Status is how far a sandbox has come.
type Status string

const (
	Created   Status = "created"   // being made
	Running   Status = "running"   // the command runs
	Lingering Status = "lingering" // the command has exited, others are still in the network
)

// Process names a process such that a reused pid does not pass for it.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks since boot (proc(5), /proc/pid/stat field 22)
}

// Open returns a pidfd of the process (pidfd_open(2)), which the caller closes; unix.ESRCH when it is gone.
func (p Process) Open() (fd int, err error) {
	if fd, err = unix.PidfdOpen(p.PID, 0); err != nil {
		return -1, err
	}
	// Only now: the descriptor is of whoever has the pid at this moment.
	if start, err := startTime(fmt.Sprintf("/proc/%d/stat", p.PID)); err != nil || start != p.StartTime {
		unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// ShortIDLen is how many digits of an id are shown, as by docker ps.
const ShortIDLen = 12

// ShortID returns the first ShortIDLen digits.
func (r *Record) ShortID() string { return ShortID(r.ID) }

// ShortID returns the first ShortIDLen digits of id.
func ShortID(id string) string { return id[:min(len(id), ShortIDLen)] }

// Self describes the calling process.
func Self() (Process, error) {
	start, err := startTime("/proc/self/stat")
	if err != nil {
		return Process{}, &Error{"create", err}
	}
	return Process{PID: os.Getpid(), StartTime: start}, nil
}

func startTime(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// Field 2, the command's name, is in parentheses and may hold anything; field 3 follows the last of them.
	const field = 22 - 3
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) <= field {
		return 0, fmt.Errorf("%s: too few fields", path)
	}
	return strconv.ParseUint(fields[field], 10, 64)
}

// maxRecord bounds what is read of a state.json: a command line may be 2 MiB (MAX_ARG_STRLEN and ARG_MAX), and JSON
// may write a byte as six.
const maxRecord = 16 << 20

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

// writeRecord replaces the record, such that a reader sees the old one or the new one.
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

// idLen is the length of an id in hexadecimal digits, that of Docker's.
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
