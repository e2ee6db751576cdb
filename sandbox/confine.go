package sandbox

import (
	"errors"
	"runtime/debug"
	"syscall"
	"time"

	"rootlessnet/internal/race"
	"rootlessnet/userns"
)

// confine takes from this process what a data plane does not need, see Config.Confine, and starts to size the Go scheduler.
func (s *sandbox) confine() error {
	if err := s.dropPrivileges(); err != nil {
		return err
	}
	if err := userns.Filter(); err != nil {
		s.log.Info("this process runs without a filter of system calls", "err", err)
	}
	s.sched.start()
	return nil
}

// dropPrivileges is userns.Confine with one exception: a build with the race detector uses cgo, with which Go cannot drop
// capabilities in all threads (syscall.AllThreadsSyscall). Such a build, which is for tests only, goes on with them, so that
// programs that start it as root of a namespace, as Podman does, can be tested with the race detector.
func (s *sandbox) dropPrivileges() error {
	err := userns.Confine()
	if race.Enabled && errors.Is(err, syscall.ENOTSUP) {
		s.log.Warn("THIS BUILD IS FOR TESTS ONLY, it keeps its capabilities: it has the race detector", "err", err)
		return nil
	}
	return err
}

// releaseAfter is longer than most short commands run, so that they do not pay for releaseStartMemory.
const releaseAfter = 500 * time.Millisecond

// releaseStartMemory gives memory that only the start needed back to the kernel.
func (s *sandbox) releaseStartMemory() {
	select {
	case <-time.After(releaseAfter):
		debug.FreeOSMemory()
		userns.ReleaseCode()
	case <-s.end:
	}
}
