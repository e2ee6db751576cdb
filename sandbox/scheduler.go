package sandbox

import (
	"context"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// The number of scheduler slots (GOMAXPROCS) of a process that is nothing but a data plane. A packet passes several goroutines.
// Handing it from one to the next costs a fraction of a microsecond if they share a slot; if they do not, a sleeping thread
// must be woken, which takes 30 to 60 µs. Therefore there is one slot until it is busy. Measured on two cores
// (bench/scheduler.md): twice the connections per second, and no less throughput.
const (
	// schedulerInterval is how often the load is measured, and so how long a burst lasts before it gets more slots.
	schedulerInterval = 500 * time.Millisecond
	// The number of slots is doubled above busyShare of their time, and halved below idleShare.
	busyShare = 0.85
	idleShare = 0.30
)

// scheduler sizes the Go scheduler to the load. The zero value has not started.
type scheduler struct {
	cancel context.CancelFunc // nil before start
	wg     sync.WaitGroup
}

func (s *scheduler) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.wg.Go(func() { schedule(ctx) })
}

func (s *scheduler) stop() {
	if s.cancel != nil {
		s.cancel()
	}
}

func (s *scheduler) wait() { s.wg.Wait() }

// schedule runs until ctx ends. It uses at most half of the cores: the guest and the peers of its connections need the others.
func schedule(ctx context.Context) {
	before := runtime.GOMAXPROCS(1)
	most := max(1, before/2)
	if most == 1 {
		return
	}
	slots, used := 1, cpuTime()
	t := time.NewTicker(schedulerInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := cpuTime()
		load := float64(now-used) / float64(schedulerInterval) / float64(slots)
		used = now
		switch {
		case load > busyShare && slots < most:
			slots = min(2*slots, most)
		case load < idleShare && slots > 1:
			slots /= 2
		default:
			continue
		}
		runtime.GOMAXPROCS(slots)
	}
}

// cpuTime is the processor time that this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
