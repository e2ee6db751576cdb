package rootlessnet

import (
	"context"
	"runtime"
	"syscall"
	"time"
)

// How the Go scheduler of a process that is nothing but a data plane is sized. A packet's way crosses several goroutines;
// where they share one scheduler slot, handing over costs a fraction of a microsecond, and where they do not, the wake-up
// of a sleeping thread, 30 to 60 of them. So there is one slot until it is full. Measured on two cores (bench/scheduler.md):
// twice the connections per second, and no less throughput.
const (
	// schedulerLook is how often the load is looked at; it is also how long a burst may last before it gets more.
	schedulerLook = 500 * time.Millisecond
	// Above busyShare of its slots the process gets twice as many, below idleShare half.
	busyShare = 0.85
	idleShare = 0.30
)

// schedule sizes the scheduler until ctx ends. The guest and the other side of its connections need cores too: half of
// them is the most we take.
func schedule(ctx context.Context) {
	before := runtime.GOMAXPROCS(1)
	most := max(1, before/2)
	if most == 1 {
		return
	}
	slots, used := 1, cpuTime()
	t := time.NewTicker(schedulerLook)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := cpuTime()
		load := float64(now-used) / float64(schedulerLook) / float64(slots)
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

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
