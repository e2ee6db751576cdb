package netns

import (
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/fdbudget"
)

// A Pool keeps open sockets of another network namespace ready, most of them transparent TCP sockets. A process or thread
// inside the namespace, where that is allowed, opens them in batches before they are needed: taking one costs no message and
// never waits. The methods may be called concurrently.
//
// The protocol on its socket pair (SOCK_SEQPACKET): a request is a packet of two bytes, the kind and how many; the response is a
// packet that carries as many descriptors (SCM_RIGHTS) as could be opened, perhaps none.
type Pool struct {
	conn     *net.UnixConn
	exchange sync.Mutex // held for a request and its answer
	ipv6     bool
	maxBatch int
	wg       sync.WaitGroup // requests under way, and the thread of OpenPoolAt

	mu     sync.Mutex
	idle   map[byte]*poolKind // by kind; guarded by mu
	closed bool               // guarded by mu
}

// poolKind are the open sockets of one kind. When half a batch is left, another is requested.
type poolKind struct {
	fds     []int
	batch   int  // size of the next batch
	pending bool // a batch was requested and has not arrived
}

// PoolOptions are the options of a Pool; the zero value is a pool of transparent IPv4 sockets.
type PoolOptions struct {
	// IPv6 is set if the namespace has IPv6 addresses.
	IPv6 bool
	// UDP has UDP sockets opened from the beginning; otherwise the first GetUDP finds none.
	UDP bool
	// MaxBatch is how many sockets of a kind are opened at once at most; more than 240 is cut to that. Up to one and a half
	// times as many of a kind are open and unused. 0 means a part of the budget of descriptors.
	MaxBatch int
}

const (
	// firstBatch is the size of the first batch of a kind. Each further one is twice as large, up to the pool's limit: a busy
	// port should neither wait for its sockets nor cause a request at every tenth connection.
	firstBatch = 32
	// maxBatch keeps a batch within one message (SCM_MAX_FD is 253).
	maxBatch = 240
	// batchShare: a batch may take this part of the pools' share of descriptors by default, so that a batch of each kind is
	// within the share, and half a batch more of each: a kind for which nothing is left gets its sockets singly, and a burst of
	// clients then finds none. Unused descriptors should not crowd out those of connections.
	batchShare = numKinds * 3 / 2
)

// The kinds of sockets, as in a request.
const (
	kindTransparent4, kindTransparent6 byte = 4, 6   // TCP, transparent, with markTransparent
	kindUDP4, kindUDP6                 byte = 14, 16 // UDP, plain
	kindForwarded4, kindForwarded6     byte = 24, 26 // TCP, transparent, with markForwarded
	kindPlain4, kindPlain6             byte = 34, 36 // TCP, plain

	numKinds = 8
)

// ErrPoolEmpty is the error of the Get methods while the pool has no socket. The pool has requested more by then; the caller
// uses another datapath, or tries again.
var ErrPoolEmpty = errors.New("no open socket in the pool")

// NewPool takes over f, the file that ServePool returned inside, and requests the first sockets. f is closed in any case.
func NewPool(f *os.File, o PoolOptions) (*Pool, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	p := &Pool{maxBatch: min(maxBatch, o.MaxBatch), conn: c.(*net.UnixConn), idle: map[byte]*poolKind{}, ipv6: o.IPv6}
	if o.MaxBatch <= 0 {
		p.maxBatch = min(maxBatch, fdbudget.Process().Share(fdbudget.Pool)/batchShare+1)
	}
	p.fill(kindTransparent4, kindTransparent6)
	if o.UDP {
		p.fill(kindUDP4, kindUDP6)
	}
	return p, nil
}

// fill requests the first batch of the kinds.
func (p *Pool) fill(ipv4, ipv6 byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refillLocked(ipv4)
	if p.ipv6 {
		p.refillLocked(ipv6)
	}
}

// FillForwarded requests the first sockets for peers behind the namespace, after Redirect.AddForwarding.
func (p *Pool) FillForwarded() { p.fill(kindForwarded4, kindForwarded6) }

// Get takes a TCP socket out of the pool: non-blocking, transparent, marked for a peer in the namespace or, with forwarded,
// for a peer that the namespace forwards to. The error is ErrPoolEmpty. The caller closes fd.
func (p *Pool) Get(ipv6, forwarded bool) (fd int, err error) {
	switch {
	case forwarded && ipv6:
		return p.get(kindForwarded6)
	case forwarded:
		return p.get(kindForwarded4)
	case ipv6:
		return p.get(kindTransparent6)
	}
	return p.get(kindTransparent4)
}

// GetUDP is Get for a UDP socket, non-blocking and not bound.
func (p *Pool) GetUDP(ipv6 bool) (fd int, err error) {
	if ipv6 {
		return p.get(kindUDP6)
	}
	return p.get(kindUDP4)
}

// GetPlain is Get for a TCP socket without options and mark.
func (p *Pool) GetPlain(ipv6 bool) (fd int, err error) {
	if ipv6 {
		return p.get(kindPlain6)
	}
	return p.get(kindPlain4)
}

func (p *Pool) get(kind byte) (fd int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.refillLocked(kind)
	n := len(k.fds)
	if n == 0 {
		return -1, ErrPoolEmpty
	}
	fd = k.fds[n-1]
	k.fds = k.fds[:n-1]
	fdbudget.Process().Give(fdbudget.Pool, 1)
	return fd, nil
}

// refillLocked requests a batch if half a batch or less is left, unless one was requested already.
func (p *Pool) refillLocked(kind byte) *poolKind {
	k := p.idle[kind]
	if k == nil {
		k = &poolKind{batch: min(firstBatch, p.maxBatch)}
		p.idle[kind] = k
	}
	if p.closed || k.pending || len(k.fds) > k.batch/2 {
		return k
	}
	k.pending = true
	budget := fdbudget.Process()
	n := min(k.batch, max(1, budget.Free(fdbudget.Pool)))
	budget.TakeAnyway(fdbudget.Pool, n)
	p.wg.Go(func() {
		fds := p.request(kind, n)
		budget.Give(fdbudget.Pool, n-len(fds))
		p.mu.Lock()
		defer p.mu.Unlock()
		k.pending = false
		if p.closed {
			closeIdle(fds)
			return
		}
		k.fds = append(k.fds, fds...)
		if len(fds) == k.batch { // one that the budget has cut short must not make the next one small
			k.batch = min(2*n, p.maxBatch)
		}
	})
	return k
}

// request requests count sockets from the other end and returns those that came, none on an error. There is one exchange at a time.
func (p *Pool) request(kind byte, count int) (fds []int) {
	p.exchange.Lock()
	defer p.exchange.Unlock()
	if _, err := p.conn.Write([]byte{kind, byte(count)}); err != nil {
		return nil
	}
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4*count))
	_, n, _, _, err := p.conn.ReadMsgUnix(b[:], oob)
	if err != nil {
		return nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// Close closes the sockets that were not taken. The server inside reads end of file and ends.
func (p *Pool) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	for _, k := range p.idle {
		closeIdle(k.fds)
		k.fds = nil
	}
	p.mu.Unlock()
	_ = p.conn.Close() // ends an exchange under way
	p.wg.Wait()
}

// closeIdle closes sockets that were not taken.
func closeIdle(fds []int) {
	closeFDs(fds)
	fdbudget.Process().Give(fdbudget.Pool, len(fds))
}
