package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

var (
	errMismatched = errors.New("too many answers that do not match the query")
	errTruncated  = errors.New("the answer is truncated and there is none over TCP")
)

// preference is the upstream to query first, until a point in time.
type preference struct {
	server netip.AddrPort
	until  time.Time
}

// order returns the upstreams in the order in which they are queried.
func (r *Resolver) order() []netip.AddrPort {
	servers := r.current.Load().servers
	p := r.preferred.Load()
	if p == nil || len(servers) < 2 || time.Now().After(p.until) {
		return servers
	}
	out := make([]netip.AddrPort, 0, len(servers))
	for _, s := range servers {
		if s == p.server {
			out = append(out, s)
		}
	}
	for _, s := range servers {
		if s != p.server {
			out = append(out, s)
		}
	}
	return out
}

type result struct {
	server netip.AddrPort
	msg    []byte
	err    error
}

// forward queries the upstreams and returns the answer, with an arbitrary ID, or nil if there is none.
func (r *Resolver) forward(ctx context.Context, q *query, viaTCP bool) []byte {
	ctx, cancel := context.WithTimeout(ctx, r.time.total)
	defer cancel() // ends the attempts that are still waiting
	servers := r.order()
	results := make(chan result, len(servers)) // buffered, so that an attempt can end after forward has returned
	next, pending := 0, 0
	start := func() {
		server := servers[next]
		next++
		pending++
		r.wg.Go(func() {
			msg, err := r.exchange(ctx, server, q, viaTCP)
			results <- result{server, msg, err}
		})
	}
	stagger := time.NewTicker(r.time.stagger)
	defer stagger.Stop()

	var fallback []byte
	firstAnswered := false // the upstream that was queried first sent an answer, perhaps an error
	start()
	for {
		select {
		case res := <-results:
			pending--
			if res.err != nil {
				r.stats.upstreamErrors.Add(1)
				r.log.Debug("a DNS upstream did not answer", "server", res.server, "err", res.err)
			} else if rc := rcodeOf(res.msg); rc != mdns.RcodeServerFailure && rc != mdns.RcodeRefused && rc != mdns.RcodeNotImplemented {
				if res.server != servers[0] && !firstAnswered {
					r.preferred.Store(&preference{res.server, time.Now().Add(r.time.prefer)})
				}
				return res.msg
			} else {
				firstAnswered = firstAnswered || res.server == servers[0]
				if fallback == nil {
					fallback = res.msg
				}
			}
			if next < len(servers) {
				start()
				stagger.Reset(r.time.stagger)
			} else if pending == 0 {
				return fallback
			}
		case <-stagger.C:
			if next < len(servers) {
				start()
			}
		case <-ctx.Done():
			return fallback
		}
	}
}

// exchange queries one upstream: over TCP first if the client used TCP or the query is long, else over UDP first; then over the
// other protocol if that may give a better result.
func (r *Resolver) exchange(ctx context.Context, server netip.AddrPort, q *query, viaTCP bool) ([]byte, error) {
	if viaTCP || len(q.raw) > maxUDPQuery {
		msg, err := r.exchangeTCP(ctx, server, q)
		if err == nil || ctx.Err() != nil {
			return msg, err
		}
		// Some upstreams do not support TCP.
		if msg, err = r.exchangeUDP(ctx, server, q); err == nil && viaTCP && isTruncated(msg) {
			return nil, errTruncated // a client that uses TCP has no other way to get the whole answer
		}
		return msg, err
	}
	msg, err := r.exchangeUDP(ctx, server, q)
	if err == nil && isTruncated(msg) && r.udpLimit(q) > minUDPSize {
		// The upstream's limit may be lower than the client's. A client that accepts only the minimum has to retry by TCP anyway.
		if whole, err := r.exchangeTCP(ctx, server, q); err == nil {
			return whole, nil
		}
	}
	return msg, err
}

// dial connects to an upstream. When ctx is done, I/O on the connection fails. The caller must call done.
func (r *Resolver) dial(ctx context.Context, network string, server netip.AddrPort) (c net.Conn, done func(), err error) {
	dctx, cancel := context.WithTimeout(ctx, r.time.tcpDial)
	defer cancel()
	c, err = r.cfg.Dial(dctx, network, server.String())
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	return c, func() { stop(); c.Close() }, nil
}

func newID() uint16 {
	var b [2]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint16(b[:])
}

var datagrams = sync.Pool{New: func() any { return new([maxMessage]byte) }}

func (r *Resolver) exchangeUDP(ctx context.Context, server netip.AddrPort, q *query) ([]byte, error) {
	c, done, err := r.dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	id := newID()
	msg := withID(q.raw, id)
	buf := datagrams.Get().(*[maxMessage]byte)
	defer datagrams.Put(buf)
	mismatched := 0
	for {
		if _, err := c.Write(msg); err != nil {
			return nil, err
		}
		c.SetReadDeadline(time.Now().Add(r.time.retransmit))
		for {
			if ctx.Err() != nil { // checked after SetReadDeadline, which may have overwritten the deadline set by dial
				return nil, ctx.Err()
			}
			n, err := c.Read(buf[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break // retransmit, unless ctx is done
			}
			if err != nil {
				return nil, err
			}
			if answers(buf[:n], id, q) {
				return append([]byte(nil), buf[:n]...), nil
			}
			r.stats.mismatched.Add(1)
			if mismatched++; mismatched > maxMismatched {
				return nil, errMismatched
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (r *Resolver) exchangeTCP(ctx context.Context, server netip.AddrPort, q *query) ([]byte, error) {
	c, done, err := r.dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	id := newID()
	if err := writeMessage(c, withID(q.raw, id)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, msg); err != nil {
		return nil, err
	}
	if !answers(msg, id, q) {
		r.stats.mismatched.Add(1)
		return nil, errMismatched
	}
	return msg, nil
}

// writeMessage writes a message preceded by its length (RFC 1035, 4.2.2) with one Write (RFC 7766, 8).
func writeMessage(c net.Conn, msg []byte) error {
	out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := c.Write(append(out, msg...))
	return err
}
