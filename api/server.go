package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Deadlines and caps of a server. Its callers are programs on the same machine that send one small request.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	// writeTimeout bounds the backend too: publishing a range of thousands of ports takes a while.
	writeTimeout = 60 * time.Second
	idleTimeout  = 30 * time.Second
	maxHeader    = 16 << 10
	// maxLeases bounds the fds that leases take; thousands of members in one network are not expected.
	maxLeases = 1024
	// maxConns bounds all connections: every lease is one, and some must be left to ask with.
	maxConns = maxLeases + 64
)

// ServerOptions tune a Server; the zero value is the default.
type ServerOptions struct {
	Logger *slog.Logger // nil means discard

	// checkPeer replaces the check of that name in tests.
	checkPeer func(*net.UnixConn) error
}

// Server answers on a control socket until it is closed.
type Server struct {
	backend Backend
	log     *slog.Logger
	http    *http.Server
	serving sync.WaitGroup // Serve, handlers and leases

	mu     sync.Mutex
	closed bool
	unlink []string // paths that go with the server
	leases map[net.Conn]struct{}
}

// NewServer makes a server for backend that listens nowhere yet.
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

// Serve answers on l too, which it owns from now on.
func (s *Server) Serve(l *net.UnixListener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = l.Close()
		return
	}
	s.serving.Go(func() {
		if err := s.http.Serve(newLimitedListener(l)); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("control socket closed", "err", err)
		}
	})
}

// Listen makes a socket at path, for our user only, and answers there. With replace the path is the server's own: a
// socket that was left there gives way, and Close removes it.
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

// Close ends all leases and connections and waits until nothing of the server runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.leases {
		c.Close()
	}
	s.mu.Unlock()
	for _, path := range s.unlink {
		_ = os.Remove(path)
	}
	err := s.http.Close()
	s.serving.Wait()
	return err
}

// peer is the verdict on a connection, made once when it is accepted.
type peer struct{ err error }

type peerKey struct{}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sandbox", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.backend.Inspect()) })
	mux.HandleFunc("GET /sandbox/stats", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.backend.Stats()) })
	mux.HandleFunc("GET /sandbox/ports", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, list(s.backend.Ports())) })
	mux.HandleFunc("POST /sandbox/ports", s.changePorts(http.StatusCreated, s.backend.AddPorts))
	mux.HandleFunc("DELETE /sandbox/ports", s.changePorts(http.StatusOK, s.backend.RemovePorts))
	mux.HandleFunc("POST /sandbox/lease", s.lease)
	for _, path := range []string{"/sandbox", "/sandbox/stats", "/sandbox/ports", "/sandbox/lease"} {
		mux.HandleFunc(path, notAllowed)
	}
	s.addV1(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fail(w, &Error{http.StatusNotFound, "page not found", nil})
	})

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			fail(w, errEnded)
			return
		}
		defer s.serving.Done()
		if p, ok := r.Context().Value(peerKey{}).(peer); !ok || p.err != nil {
			s.log.Warn("control socket: peer refused", "err", p.err)
			w.Header().Set("Connection", "close")
			fail(w, &Error{http.StatusForbidden, "permission denied: " + errText(p.err), p.err})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		mux.ServeHTTP(w, r)
	})
}

func errText(err error) string {
	if err == nil {
		return "unknown peer"
	}
	return err.Error()
}

// enter counts a handler in, unless the server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.serving.Add(1)
	return true
}

var errEnded = &Error{http.StatusServiceUnavailable, "the sandbox has ended", nil}

func (s *Server) changePorts(status int, change func(context.Context, string) ([]Port, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req PortRequest
		if err := decode(r.Body, &req); err != nil {
			fail(w, err)
			return
		}
		ports, err := change(r.Context(), req.Spec)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, status, list(ports))
	}
}

// lease takes the connection over and holds it until either side closes it.
func (s *Server) lease(w http.ResponseWriter, r *http.Request) {
	var req LeaseRequest
	if err := decode(r.Body, &req); err != nil {
		fail(w, err)
		return
	}
	if req.Kind != LeaseMember && req.Kind != LeaseExec {
		fail(w, &Error{http.StatusBadRequest, "invalid lease kind: " + string(req.Kind), nil})
		return
	}
	release, err := s.backend.Lease(req.Kind)
	if err != nil {
		fail(w, err)
		return
	}
	defer release()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fail(w, err)
		return
	}
	defer conn.Close()
	if err := s.addLease(conn); err != nil {
		conn.SetDeadline(time.Now().Add(headerTimeout))
		writeRaw(conn, err)
		return
	}
	defer s.dropLease(conn)
	conn.SetDeadline(time.Time{})
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+leaseProtocol+"\r\n\r\n")
	if err != nil {
		return
	}
	// Nothing is ever said on a lease: whatever the read returns is its end.
	var b [1]byte
	conn.Read(b[:])
}

func (s *Server) addLease(c net.Conn) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errEnded
	case len(s.leases) >= maxLeases:
		return &Error{http.StatusTooManyRequests, "too many leases", nil}
	}
	s.leases[c] = struct{}{}
	return nil
}

func (s *Server) dropLease(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leases, c)
}

// writeRaw answers on a connection that net/http has let go of.
func writeRaw(c net.Conn, e *Error) {
	rec := &http.Response{StatusCode: e.Status, ProtoMajor: 1, ProtoMinor: 1, Close: true, Header: http.Header{"Content-Type": {"application/json"}}}
	text, _ := json.Marshal(errorBody{e.Message})
	rec.Body, rec.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	rec.Write(c)
}

// decode reads one JSON value with known fields only and nothing behind it.
func decode(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("data after the value")
			if tooLarge(end) {
				err = end
			}
		}
	}
	switch {
	case err == nil:
		return nil
	case tooLarge(err):
		return &Error{http.StatusRequestEntityTooLarge, "request too large", err}
	default:
		return &Error{http.StatusBadRequest, "invalid request: " + err.Error(), err}
	}
}

func tooLarge(err error) bool {
	var e *http.MaxBytesError
	return errors.As(err, &e)
}

func answer(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(text, '\n'))
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var e *Error
	if errors.As(err, &e) {
		status = e.Status
	}
	answer(w, status, errorBody{err.Error()})
}

// list makes no ports an empty list rather than null.
func list(ports []Port) []Port {
	if ports == nil {
		return []Port{}
	}
	return ports
}
