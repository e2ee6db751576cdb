package splice

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// napTime is how long a side that is in bulk is left alone once it has been emptied. Woken for each segment, the loop
	// would move little at a time, and the sender would pay for waking it: with naps all processes together take 15 % less
	// processor time per byte (bench/splice.md). At 25 Gb/s, 300 KiB come meanwhile: less than any receive buffer holds.
	napTime = 100 * time.Microsecond
	// napAfter is what a side must have moved without a break: who sends a few MiB and waits for an answer shall not wait
	// for a nap as well.
	napAfter = 4 << 20
)

// napper is the loop's alarm clock: a timer of the kernel among the events. (Go's own wake a sleeping process after a
// millisecond at the earliest.)
type napper struct {
	loop   *Loop
	fd     int // -1: there is none
	tried  bool
	armed  bool
	asleep map[*side]struct{}
}

// nap leaves s alone for a while; false when that cannot be.
func (n *napper) nap(s *side) bool {
	if !n.tried {
		n.tried = true
		n.open()
	}
	if n.fd < 0 {
		return false
	}
	if !n.armed {
		// struct itimerspec: interval, value
		spec := [2]unix.Timespec{1: unix.NsecToTimespec(int64(napTime))}
		if _, _, errno := unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(n.fd), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
			return false
		}
		n.armed = true
	}
	n.asleep[s] = struct{}{}
	return true
}

func (n *napper) open() {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return
	}
	if _, err := n.loop.Watch(fd, unix.EPOLLIN|edgeTriggered, n); err != nil {
		unix.Close(fd)
		return
	}
	n.fd, n.asleep = fd, map[*side]struct{}{}
}

// Ready is called when the time is over.
func (n *napper) Ready(uint32) {
	n.armed = false
	sides := n.asleep
	n.asleep = make(map[*side]struct{}, len(sides))
	for s := range sides {
		s.wake()
	}
}

func (n *napper) close() {
	if n.fd >= 0 {
		unix.Close(n.fd)
	}
}

// nap ends the events about what can be read, until wake.
func (s *side) nap() bool {
	if s.streak < napAfter || !s.pair.loop.naps.nap(s) {
		return false
	}
	s.napping, s.napMark = true, s.streak
	if !s.quiet {
		s.quiet = true
		s.watch()
	}
	return true
}

// wake has s looked at. If nothing has come it is not in bulk any more, and its events come again.
func (s *side) wake() {
	if s.pair.ended {
		return
	}
	s.napping = false
	if s.streak == s.napMark {
		s.bulk, s.streak = false, 0
	}
	s.readable = true
	s.pair.pump(s)
	s.pair.settle()
}

// listen asks for events again, when nothing else will have s looked at.
func (s *side) listen() {
	if s.quiet && !s.napping && !s.readable {
		s.quiet = false
		s.watch()
	}
}

// watch sets the events of s: edge-triggered, and what is true already is an event as well.
func (s *side) watch() {
	events := uint32(watched)
	if s.quiet {
		events &^= unix.EPOLLIN
	}
	if s.roomWatched {
		events |= unix.EPOLLOUT
	}
	_ = s.pair.loop.rearm(s.fd, events, s.token)
}
