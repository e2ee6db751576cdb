package splice

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// moderationTime is how long the events of a side in bulk transfer are withheld once its socket has been emptied. With an
	// event for each segment the loop would move little at a time, and the sender would pay for each wake-up: with moderation all
	// processes together take 15 % less processor time per byte (bench/splice.md). At 25 Gbit/s, 300 KiB arrive during that time,
	// which every receive buffer holds.
	moderationTime = 100 * time.Microsecond
	// moderationStart is how many bytes a side must have moved as bulk without interruption before its events are moderated, so
	// that a peer that sends a few MiB and then waits for an answer does not wait for moderationTime as well.
	moderationStart = 4 << 20
)

// moderator ends the moderation of all moderated sides by one kernel timer (timerfd), which is watched by the loop like any socket.
// A Go timer would not do: it wakes a sleeping process after a millisecond at the earliest.
type moderator struct {
	loop      *Loop
	fd        int // of the timer; -1 if there is none
	tried     bool
	armed     bool
	moderated map[*side]struct{}
}

// add starts moderation of s: expired will be called after moderationTime at the latest. It returns false if there is no timer.
func (m *moderator) add(s *side) bool {
	if !m.tried {
		m.tried = true
		m.open()
	}
	if m.fd < 0 {
		return false
	}
	if !m.armed {
		// struct itimerspec: interval, value
		spec := [2]unix.Timespec{1: unix.NsecToTimespec(int64(moderationTime))}
		if _, _, errno := unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(m.fd), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
			return false
		}
		m.armed = true
	}
	m.moderated[s] = struct{}{}
	return true
}

func (m *moderator) open() {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return
	}
	if _, err := m.loop.Watch(fd, unix.EPOLLIN|edgeTriggered, m); err != nil {
		unix.Close(fd)
		return
	}
	m.fd, m.moderated = fd, map[*side]struct{}{}
}

// Ready implements Handler: the timer has expired.
func (m *moderator) Ready(uint32) {
	m.armed = false
	sides := m.moderated
	m.moderated = make(map[*side]struct{}, len(sides))
	for s := range sides {
		s.moderationExpired()
	}
}

func (m *moderator) close() {
	if m.fd >= 0 {
		unix.Close(m.fd)
	}
}

// moderate disables EPOLLIN of s until moderationExpired, if its bulk transfer has lasted long enough and there is a timer.
func (s *side) moderate() {
	if s.streak < moderationStart || !s.pair.loop.moderation.add(s) {
		return
	}
	s.moderated, s.moderatedAt = true, s.streak
	if !s.inDisabled {
		s.inDisabled = true
		s.setEvents()
	}
}

// moderationExpired reads s again. If nothing arrived meanwhile, the bulk transfer is over, and pump enables EPOLLIN again.
func (s *side) moderationExpired() {
	if s.pair.ended {
		return
	}
	s.moderated = false
	if s.streak == s.moderatedAt {
		s.bulk, s.streak = false, 0
	}
	s.readable = true
	s.pair.pump(s)
	s.pair.endIfOver()
}

// enableIn enables EPOLLIN, if it is disabled and neither a timer nor pending work will have s read again.
func (s *side) enableIn() {
	if s.inDisabled && !s.moderated && !s.readable {
		s.inDisabled = false
		s.setEvents()
	}
}

// setEvents sets the event mask of s according to its state. Although edge-triggered, EPOLL_CTL_MOD reports a condition that
// holds already as a new event.
func (s *side) setEvents() {
	events := uint32(sideEvents)
	if s.inDisabled {
		events &^= unix.EPOLLIN
	}
	if s.outEnabled {
		events |= unix.EPOLLOUT
	}
	_ = s.pair.loop.Rearm(s.fd, events, s.token)
}
