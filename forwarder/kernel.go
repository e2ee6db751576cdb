package forwarder

import (
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/splice"
	"rootlessnet/stack"
)

// Kernel is what the kernel's road needs of the guest's namespace. Streams takes all of it over.
type Kernel struct {
	// Packets is an AF_PACKET socket: an Ethernet frame written to it, without addresses, arrives on the namespace's lo
	// and finds its way to a listener.
	Packets *os.File
	// Loopback is the index of lo.
	Loopback int
	// Listeners, non-blocking, one a family, accept connections to any address.
	Listeners []*os.File
	// Mint makes sockets that may have any address, and speak to the guest with it.
	Mint Mint
	// Forward makes the namespace ready for TCP that it forwards, from what is behind it. It is called once, when it is needed,
	// and may block. nil means that this is for the other road.
	Forward func() error
	// LinkPace is how long a connection of the other road may say nothing to the guest; 0 means as long as it likes.
	LinkPace time.Duration
}

// Mint is a stock of transparent TCP sockets.
type Mint interface {
	// Get never waits; an error means that there is none at the moment. beyond is for a peer behind the guest.
	Get(ipv6, beyond bool) (fd int, err error)
	Close()
}

// kernelRoad joins the guest's connections with the host's by splice(2): both ends are sockets of the kernel, netstack
// has no part in it. It is an addition to the other road: whatever it cannot do, that one does.
//
//	out: SYN from the link → policy → dial → the SYN again, on lo → accept → join
//	in:  accept → minted socket with the client's address → connect → join
type kernelRoad struct {
	t    *Streams
	k    Kernel
	loop *splice.Loop

	most    int // joined or on the way to it; what is beyond takes the other road, which needs half the descriptors
	packets int // descriptors
	listen  []listener
	to      unix.RawSockaddrLinklayer

	mu       sync.Mutex
	closed   bool                    // guarded by mu
	requests map[stack.Flow]*request // guarded by mu
	offered  int                     // of the requests; guarded by mu
	doubt    doubt                   // guarded by mu

	forwarding   forwardState              // guarded by mu
	forwardDoubt doubt                     // guarded by mu
	held         map[stack.Flow]*stack.SYN // guarded by mu

	pausing  bool                    // accept found no descriptor, and will look again; guarded by mu
	dials    map[*guestDial]struct{} // guarded by mu
	joined   map[*joint]struct{}     // guarded by mu
	sweeping *time.Timer             // not nil while there is something to sweep; guarded by mu

	toHost, toGuest uint64 // bytes of what has ended; guarded by mu
}

// joint is one joined pair.
type joint struct {
	info FlowInfo
	pair *splice.Pair // the host's socket first
}

// fileShare: a joined pair has two descriptors, and pairs may have half of them all.
const fileShare = 4

// sweepPace is how often attempts are looked at that the guest does not answer.
const sweepPace = 5 * time.Second

// UseKernel opens the kernel's road. It must be called before the first connection, once. On an error nothing of k is
// left open.
func (t *Streams) UseKernel(k Kernel) (err error) {
	r := &kernelRoad{t: t, k: k, packets: -1, requests: map[stack.Flow]*request{}, held: map[stack.Flow]*stack.SYN{}, dials: map[*guestDial]struct{}{}, joined: map[*joint]struct{}{}}
	defer func() {
		if err != nil {
			r.closeFiles()
		}
	}()
	if r.packets, err = takeFD(k.Packets); err != nil {
		return err
	}
	r.most = math.MaxInt
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil && lim.Cur < math.MaxInt32 {
		r.most = int(lim.Cur) / fileShare
	}
	r.to = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(k.Loopback)}
	if r.loop, err = splice.NewLoop(t.log, t.cfg.Spin); err != nil {
		return err
	}
	for _, l := range k.Listeners {
		fd, err := takeFD(l)
		if err != nil {
			r.loop.Close()
			return err
		}
		r.listen = append(r.listen, listener{r: r, fd: fd, ipv6: rawsock.LocalAddr(fd).Addr().Is6()})
	}
	for i := range r.listen {
		l := &r.listen[i]
		// One event at most, each time it is asked for: accept follows the request by itself, nearly always.
		if l.token, err = r.loop.Watch(l.fd, unix.EPOLLONESHOT, l); err != nil {
			r.loop.Close()
			return err
		}
	}
	t.kernel = r
	return nil
}

// takeFD takes the descriptor out of f, which is closed: a file would tell Go's poller of every event, and not only the loop.
func takeFD(f *os.File) (n int, err error) {
	defer f.Close()
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var derr error
	if err = c.Control(func(fd uintptr) { n, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err == nil {
		err = derr
	}
	if err != nil {
		return -1, err
	}
	return n, nil
}

// close ends everything. Nobody calls HandleSYN or serve any more.
func (r *kernelRoad) close() {
	r.mu.Lock()
	r.closed = true
	if r.sweeping != nil {
		r.sweeping.Stop()
	}
	for _, q := range r.requests {
		r.drop(q)
	}
	for d := range r.dials {
		d.end(true)
	}
	r.mu.Unlock()
	r.loop.Close()
	r.closeFiles()
}

func (r *kernelRoad) closeFiles() {
	_ = r.k.Packets.Close() // this and the listeners: where they were not taken yet
	for _, l := range r.k.Listeners {
		_ = l.Close()
	}
	if r.packets >= 0 {
		unix.Close(r.packets)
	}
	for i := range r.listen {
		unix.Close(r.listen[i].fd)
	}
	r.k.Mint.Close()
}

// join hands both sockets to the loop. r.mu is held: the pair may end at once.
func (r *kernelRoad) join(host, guest int, f stack.Flow, dir Direction) {
	j := &joint{info: FlowInfo{Direction: dir, Flow: f, Since: time.Now()}}
	var err error
	if j.pair, err = r.loop.Join(host, guest, func() { r.parted(j) }); err != nil { // no memory, or closed
		rawsock.Reset(host)
		rawsock.Reset(guest)
		return
	}
	r.joined[j] = struct{}{}
	if dir == Inbound {
		r.t.stats.in.Add(1)
	} else {
		r.t.stats.out.Add(1)
	}
}

// parted is called by the loop when a pair has ended.
func (r *kernelRoad) parted(j *joint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.joined, j)
	toHost, toGuest := j.pair.Moved()
	r.toHost += toHost
	r.toGuest += toGuest
}

// moved is the payload of all connections so far, bytes.
func (r *kernelRoad) moved() (toHost, toGuest uint64, active int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	toHost, toGuest = r.toHost, r.toGuest
	for j := range r.joined {
		h, g := j.pair.Moved()
		toHost, toGuest = toHost+h, toGuest+g
	}
	return toHost, toGuest, len(r.joined)
}

func (r *kernelRoad) flows() (l []FlowInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for j := range r.joined {
		l = append(l, j.info)
	}
	return l
}

// full says that there are as many connections as the descriptors allow. r.mu is held.
func (r *kernelRoad) full() bool { return len(r.joined)+len(r.requests)+len(r.dials) >= r.most }

// sweepLater makes sure that sweep runs. r.mu is held.
func (r *kernelRoad) sweepLater() {
	if r.sweeping == nil && !r.closed {
		r.sweeping = time.AfterFunc(sweepPace, r.sweep)
	}
}

// sweep gives up what the guest has not answered in time.
func (r *kernelRoad) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweeping = nil
	if r.closed {
		return
	}
	now := time.Now()
	for _, q := range r.requests {
		switch age := now.Sub(q.since); {
		case q.offered && age > guestDialTimeout:
			r.unanswered(q)
		case !q.offered && age > dialTimeout:
			r.drop(q)
			r.t.stats.dialErrors.Add(1)
		}
	}
	if len(r.requests) > 0 {
		r.sweepLater()
	}
}
