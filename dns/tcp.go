package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// ServeTCP serves all queries on the connection c and closes it. It returns when the client has closed the connection and been
// answered, was idle or took for one message longer than permitted, or the resolver was closed. c must support deadlines.
func (r *Resolver) ServeTCP(c net.Conn) {
	defer c.Close()
	if !r.begin() {
		return
	}
	defer r.wg.Done()
	select {
	case r.conns <- struct{}{}:
		defer func() { <-r.conns }()
	default:
		r.stats.connsRefused.Add(1)
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	// Closing c ends the read that blocks.
	defer context.AfterFunc(ctx, func() { c.Close() })()
	s := &session{r: r, conn: c, cancel: cancel}
	if err := s.read(ctx); !errors.Is(err, io.EOF) {
		r.log.Debug("DNS connection of a client ended", "err", err)
		if !isTimeout(err) {
			cancel() // the connection was reset or sent a malformed message: the answers are not needed
		}
	}
	s.work.Wait()
}

// session is one client's connection.
type session struct {
	r      *Resolver
	conn   net.Conn
	cancel context.CancelFunc
	work   sync.WaitGroup // queries in flight; each has a time limit
	mu     sync.Mutex     // held while an answer is written
}

// read reads queries and has up to maxPipelined of them answered concurrently; answers are sent in the order in which they are
// ready (RFC 7766, 6.2.1.1 and 7). It returns io.EOF if the client has closed its direction.
func (s *session) read(ctx context.Context) error {
	slots := make(chan struct{}, maxPipelined)
	for {
		var length [2]byte
		if err := s.conn.SetReadDeadline(time.Now().Add(s.r.time.tcpIdle)); err != nil {
			return err
		}
		if _, err := io.ReadFull(s.conn, length[:]); err != nil {
			return err
		}
		if err := s.conn.SetReadDeadline(time.Now().Add(s.r.time.tcpMessage)); err != nil {
			return err
		}
		msg := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(s.conn, msg); err != nil {
			return err
		}
		s.r.stats.queries.Add(1)
		q, rcode, ok := parseQuery(msg)
		if !ok {
			s.r.stats.malformed.Add(1)
			return errMalformed
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case s.r.inflight <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.work.Go(func() {
			answer := s.r.answer(ctx, q, rcode, true)
			<-s.r.inflight // released before the write: a client that does not read must not occupy it
			if answer != nil {
				answer, _ = q.fit(answer, maxMessage)
				s.write(answer)
			}
			<-slots
		})
	}
}

func (s *session) write(msg []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn.SetWriteDeadline(time.Now().Add(s.r.time.tcpMessage)) != nil || writeMessage(s.conn, msg) != nil {
		s.cancel()
		return
	}
	s.r.stats.answers.Add(1)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
