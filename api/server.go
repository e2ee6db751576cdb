package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
)

// ServerOptions configure a Server. The zero value has the defaults.
type ServerOptions struct {
	Logger *slog.Logger // nil discards log lines

	// checkPeer replaces the function of that name in tests.
	checkPeer func(*net.UnixConn) error
}

// Server answers on control sockets until it is closed. Its methods may be called concurrently.
type Server struct {
	backend Backend
	log     *slog.Logger
	http    *http.Server
	serving sync.WaitGroup // accept loops and handlers, those of leases included

	mu     sync.Mutex
	closed bool                  // guarded by mu
	unlink []string              // sockets that Close removes; guarded by mu
	leases map[net.Conn]struct{} // guarded by mu
}

// NewServer returns a server for backend that does not listen yet. The caller must Close it.
func NewServer(backend Backend, opts ServerOptions) *Server {
	s := &Server{backend: backend, log: opts.Logger, leases: make(map[net.Conn]struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	check := opts.checkPeer
	if check == nil {
		check = checkPeer
	}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peer{check(c.(*limitedConn).UnixConn)})
		},
	}
	return s
}

// Serve answers on l until Close, which closes l. The call returns at once; it may be repeated for other listeners.
func (s *Server) Serve(l *net.UnixListener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = l.Close()
		return
	}
	s.serving.Go(func() {
		if err := s.http.Serve(newLimitedListener(l)); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("control socket: no more connections are accepted; restart the sandbox to manage it", "socket", l.Addr(), "err", err)
		}
	})
}

// Listen makes a socket at path that only our user can connect to, and answers there. With replace, a socket that is left
// over at path is removed first, and Close removes the new one.
func (s *Server) Listen(path string, replace bool) error {
	if replace {
		if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	l, err := Listen(path)
	if err != nil {
		return err
	}
	if replace {
		s.mu.Lock()
		s.unlink = append(s.unlink, path)
		s.mu.Unlock()
	}
	s.Serve(l)
	return nil
}

// Close closes all listeners, leases and connections, and waits until the last handler has returned.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	unlink := s.unlink
	s.unlink = nil
	for c := range s.leases {
		c.Close()
	}
	s.mu.Unlock()
	for _, path := range unlink {
		_ = os.Remove(path)
	}
	err := s.http.Close()
	s.serving.Wait()
	return err
}

// peer is the result of checkPeer, which is called once for each connection.
type peer struct{ err error }

// peerKey is the key of a connection's peer in the contexts of its requests.
type peerKey struct{}

// handler checks the peer and limits the body before it passes a request to its route.
func (s *Server) handler() http.Handler {
	mux := newMux(s.routes())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			fail(w, errEnded)
			return
		}
		defer s.serving.Done()
		if p, ok := r.Context().Value(peerKey{}).(peer); !ok || p.err != nil {
			if !ok {
				p.err = errors.New("unknown peer")
			}
			s.log.Warn("control socket: request refused", "err", p.err)
			w.Header().Set("Connection", "close")
			fail(w, &Error{http.StatusForbidden, "permission denied: " + p.err.Error(), p.err})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		mux.ServeHTTP(w, r)
	})
}

// enter adds a handler to those that Close waits for. It returns false once Close was called.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.serving.Add(1)
	return true
}
