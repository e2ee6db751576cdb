package userns

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A Minter keeps a stock of transparent TCP sockets of the namespace. They are made inside, where that is allowed, in
// batches, before they are needed: a connection then costs no message. Its methods may be called concurrently.
//
// The conversation on its socket pair: a packet of two bytes asks, the kind and how many; a packet with the
// descriptors answers, with as many as could be made.
type Minter struct {
	conn *net.UnixConn
	turn sync.Mutex // held for an exchange
	most int        // sockets asked for at once

	mu     sync.Mutex
	stock  map[byte]*stock // by kind; guarded by mu
	closed bool            // guarded by mu
	ipv6   bool
	wg     sync.WaitGroup
}

// stock are the sockets of one kind. When half a batch is left, another is asked for.
type stock struct {
	fds     []int
	batch   int  // of the next order
	ordered bool // a batch is on its way
}

const (
	// mintFirst sockets are asked for at once, and twice as many each time, up to mintMost (SCM_MAX_FD is 253): a port that
	// is busy should neither wait for the one who makes them, nor be disturbed by him at every tenth connection. Both only
	// where that is less than one mintShare-th of RLIMIT_NOFILE: they are descriptors that nobody uses yet.
	mintFirst = 32
	mintMost  = 240
	mintShare = 64

	// The kinds of sockets: transparent ones of TCP, and of UDP such as anybody can make.
	mint4, mint6       byte = 4, 6
	mintUDP4, mintUDP6 byte = 14, 16
	// Transparent ones of TCP that speak to somebody beyond the namespace.
	mintBeyond4, mintBeyond6 byte = 24, 26
	// Of TCP, such as anybody can make.
	mintPlain4, mintPlain6 byte = 34, 36
)

// ErrNoSocket is what Get returns while there is nothing in stock: another road must do.
var ErrNoSocket = errors.New("no minted socket in stock")

// newMinter takes over the supervisor's end.
func newMinter(f *os.File, ipv6 bool) (*Minter, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	m := &Minter{most: mintMost, conn: c.(*net.UnixConn), stock: map[byte]*stock{}, ipv6: ipv6}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		m.most = int(min(mintMost, lim.Cur/mintShare+1))
	}
	m.order(mint4)
	if ipv6 {
		m.order(mint6)
	}
	return m, nil
}

// stockBeyond begins with those that speak to somebody beyond the namespace.
func (m *Minter) stockBeyond() {
	m.order(mintBeyond4)
	if m.ipv6 {
		m.order(mintBeyond6)
	}
}

// Get takes a socket out of stock: non-blocking, transparent, marked. Its peer is in the namespace, or beyond it, where the
// namespace forwards to. It never waits. The caller closes it.
func (m *Minter) Get(ipv6, beyond bool) (fd int, err error) {
	switch {
	case beyond && ipv6:
		return m.get(mintBeyond6)
	case beyond:
		return m.get(mintBeyond4)
	case ipv6:
		return m.get(mint6)
	}
	return m.get(mint4)
}

// GetUDP is Get for a socket of UDP, non-blocking, not bound.
func (m *Minter) GetUDP(ipv6 bool) (fd int, err error) {
	if ipv6 {
		return m.get(mintUDP6)
	}
	return m.get(mintUDP4)
}

// GetPlain is Get for a socket of TCP without anything special about it.
func (m *Minter) GetPlain(ipv6 bool) (fd int, err error) {
	if ipv6 {
		return m.get(mintPlain6)
	}
	return m.get(mintPlain4)
}

func (m *Minter) get(kind byte) (fd int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.orderLocked(kind)
	n := len(s.fds)
	if n == 0 {
		return -1, ErrNoSocket
	}
	fd = s.fds[n-1]
	s.fds = s.fds[:n-1]
	return fd, nil
}

func (m *Minter) order(kind byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.orderLocked(kind)
}

// orderLocked asks for a batch if there is little left, unless one is on its way.
func (m *Minter) orderLocked(kind byte) *stock {
	s := m.stock[kind]
	if s == nil {
		s = &stock{batch: min(mintFirst, m.most)}
		m.stock[kind] = s
	}
	if m.closed || s.ordered || len(s.fds) > s.batch/2 {
		return s
	}
	s.ordered = true
	n := s.batch
	m.wg.Go(func() {
		fds := m.ask(kind, n)
		m.mu.Lock()
		defer m.mu.Unlock()
		s.ordered = false
		if m.closed {
			closeFDs(fds)
			return
		}
		s.fds = append(s.fds, fds...)
		if len(fds) == n {
			s.batch = min(2*n, m.most)
		}
	})
	return s
}

// ask holds one exchange; the kinds take turns.
func (m *Minter) ask(kind byte, count int) (fds []int) {
	m.turn.Lock()
	defer m.turn.Unlock()
	if _, err := m.conn.Write([]byte{kind, byte(count)}); err != nil {
		return nil
	}
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4*count))
	_, n, _, _, err := m.conn.ReadMsgUnix(b[:], oob)
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

// Close closes what is in stock. The inside ends its part by itself.
func (m *Minter) Close() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.closed = true
	for _, s := range m.stock {
		closeFDs(s.fds)
		s.fds = nil
	}
	m.mu.Unlock()
	_ = m.conn.Close() // ends an exchange under way
	m.wg.Wait()
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func mintOne(kind byte) (fd int, err error) {
	switch kind {
	case mintUDP4:
		return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	case mintUDP6:
		return unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	case mintPlain4:
		return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	case mintPlain6:
		return unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	}
	mark := markSpeak
	if kind == mintBeyond4 || kind == mintBeyond6 {
		mark = markBeyond
	}
	return transparentSocket(kind == mint6 || kind == mintBeyond6, mark)
}

// Mint begins a stock of sockets of the namespace, of TCP and UDP, without a Diversion. Whoever has it closes it.
func (s *Sandbox) Mint(ctx context.Context, ipv6 bool) (*Minter, error) {
	r, err := s.request(ctx, &message{Type: msgMint}, msgMinted)
	if err != nil {
		return nil, err
	}
	m, err := newMinter(r.fds[0], ipv6)
	if err != nil {
		return nil, &Error{Op: "mint sockets", Err: err}
	}
	m.order(mintUDP4)
	if ipv6 {
		m.order(mintUDP6)
	}
	return m, nil
}

// startMinter runs inside. It ends when the supervisor closes the file returned.
func startMinter() (*os.File, error) {
	inside, outside, err := minterPair()
	if err != nil {
		return nil, err
	}
	go serveMinter(inside)
	return outside, nil
}

// minterPair makes the two ends of the conversation.
func minterPair() (inside *net.UnixConn, outside *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "minter")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return c.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "mint"), nil
}

// serveMinter makes sockets of the calling thread's namespace until the other end is closed.
func serveMinter(u *net.UnixConn) {
	defer u.Close()
	var b [2]byte
	for {
		if n, err := u.Read(b[:]); err != nil || n != len(b) || b[1] > mintMost {
			return
		}
		batch := mint(b[0], int(b[1]))
		var rights []byte
		if len(batch) > 0 {
			rights = unix.UnixRights(batch...)
		}
		_, _, err := u.WriteMsgUnix(b[:1], rights, nil)
		if err != nil && len(batch) > 0 {
			// ETOOMANYREFS: the user has as many descriptors on their way as he may have open, by whatever program. That passes.
			_, err = u.Write(b[:1])
		}
		closeFDs(batch)
		if err != nil {
			return
		}
	}
}

// mint makes a batch, or as much of it as there are descriptors for.
func mint(kind byte, n int) (fds []int) {
	for range n {
		fd, err := mintOne(kind)
		if err != nil {
			break
		}
		fds = append(fds, fd)
	}
	return fds
}
