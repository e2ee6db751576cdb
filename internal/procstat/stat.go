package procstat

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// userHZ is the number of clock ticks per second in /proc. Linux shows 100 to every program (USER_HZ), whatever the kernel's own
// tick is.
const userHZ = 100

// Stat holds some fields of a process.
type Stat struct {
	Parent int
	// TTY is the device number of the controlling terminal, 0 without one.
	TTY int
	// Threads is the number of threads.
	Threads int
	// Start is the start time in clock ticks since boot. It distinguishes the process from a later one with the same pid.
	Start uint64
	// CPU is the processor time that all threads of the process have used, in user mode and in the kernel.
	CPU time.Duration
}

// Read returns the Stat of the process pid. The error wraps fs.ErrNotExist if there is no such process.
func Read(pid int) (Stat, error) { return read(fmt.Sprintf("/proc/%d/stat", pid)) }

// Self returns the Stat of this process, also if /proc is that of another pid namespace, in which its pid is a different one.
func Self() (Stat, error) { return read("/proc/self/stat") }

func read(path string) (Stat, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Stat{}, err
	}
	s, err := Parse(text)
	if err != nil {
		return Stat{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Numbers of fields, as in proc(5).
const (
	fieldState   = 3 // the first field after the name of the command
	fieldParent  = 4
	fieldTTY     = 7
	fieldUTime   = 14
	fieldSTime   = 15
	fieldThreads = 20
	fieldStart   = 22
)

// Parse parses the content of /proc/PID/stat.
func Parse(text []byte) (Stat, error) {
	// Field 2, the name of the command, is in parentheses and may contain any byte, parentheses and newlines included. Field 3
	// follows the last closing parenthesis.
	line := string(text)
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(fields) <= fieldStart-fieldState {
		return Stat{}, fmt.Errorf("process status has %d fields after the name of the command", len(fields))
	}
	var errs []error
	number := func(field int) uint64 {
		v, err := strconv.ParseUint(fields[field-fieldState], 10, 64)
		errs = append(errs, err)
		return v
	}
	s := Stat{Parent: int(number(fieldParent)), Start: number(fieldStart), TTY: int(number(fieldTTY)), Threads: int(number(fieldThreads)),
		CPU: time.Duration(number(fieldUTime)+number(fieldSTime)) * time.Second / userHZ}
	return s, errors.Join(errs...)
}
