package api

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"time"
)

// leaseProtocol is the value of the Upgrade header of a lease, in the request and in the answer.
const leaseProtocol = "rootlessnet-lease"

// lease handles POST /v1/sandbox/lease. It takes the connection over from net/http and holds it until either side closes it.
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
		writeError(conn, err)
		return
	}
	defer s.dropLease(conn)
	conn.SetDeadline(time.Time{})
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+leaseProtocol+"\r\n\r\n")
	if err != nil {
		return
	}
	// Neither side sends anything on a lease, so whatever Read returns means that the client has closed the connection or that Close has closed
	// the connection.
	var b [1]byte
	conn.Read(b[:])
}

// addLease registers the connection of a lease, which Close then closes.
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

// writeError answers on a connection that was taken over from net/http.
func writeError(c net.Conn, e *Error) {
	text, _ := json.Marshal(errorBody{Message: e.Message}) // cannot fail: strings only
	resp := &http.Response{StatusCode: e.Status, ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   io.NopCloser(bytes.NewReader(text)), ContentLength: int64(len(text))}
	resp.Write(c) // an error means that the client has closed the connection
}
