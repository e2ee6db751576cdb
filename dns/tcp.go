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

// ServeTCP has the whole conversation with a client and closes c at its end. It returns when the client is done, was
// silent for too long, took too long over one message, or the resolver was closed. c must honour deadlines.
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
	// Whatever ends the conversation ends the read it waits in.
	defer context.AfterFunc(ctx, func() { c.Close() })()
	s := &session{r: r, conn: c, cancel: cancel}
	if err := s.read(ctx); !errors.Is(err, io.EOF) {
		r.log.Debug("client over TCP", "err", err)
		if !isTimeout(err) {
			cancel() // reset, or nonsense: nobody waits for the answers
		}
	}
	s.work.Wait()
}

// session is one client's connection.
type session struct {
	r      *Resolver
	conn   net.Conn
	cancel context.CancelFunc
	work   sync.WaitGroup // the queries being worked on; each is bounded in time
	mu     sync.Mutex     // one answer is written at a time
}

// read takes one query after the other, and works on up to maxPipelined at once (RFC 7766, 6.2.1.1 and 7: answers go
// back in the order they are ready). It returns io.EOF when the client said it has no more.
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
			<-s.r.inflight // before the write: a client that does not read holds up itself alone
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
