package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestLeaseEndsWithItsConnection(t *testing.T) {
	b := newFake()
	_, c := serve(t, b, "", ServerOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	l, err := c.Lease(ctx, LeaseMember)
	if err != nil {
		t.Fatal(err)
	}
	cancel() // ends the request; the lease must stay
	if box, err := c.Inspect(t.Context()); err != nil || box.Members != 1 {
		t.Errorf("%+v %v", box, err)
	}
	select {
	case <-l.Done():
		t.Error("lease ended with the context of its request")
	case <-time.After(50 * time.Millisecond):
	}
	l.Close()
	l.Close()
	if kind := receive(t, b.gone); kind != LeaseMember {
		t.Error(kind)
	}
	if box, err := c.Inspect(t.Context()); err != nil || box.Members != 0 {
		t.Errorf("%+v %v", box, err)
	}
}

func TestLeaseEndsWithTheServer(t *testing.T) {
	b := newFake()
	s, c := serve(t, b, "", ServerOptions{})
	l, err := c.Lease(t.Context(), LeaseExec)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	receive(t, l.Done())
	receive(t, b.gone)
	if _, err := c.Inspect(t.Context()); err == nil {
		t.Error("a closed server has answered")
	}
}

func TestLeaseRefused(t *testing.T) {
	b := newFake()
	_, c := serve(t, b, "", ServerOptions{})
	if _, err := c.Lease(t.Context(), "other"); err == nil || err.Error() != "invalid lease kind: other" {
		t.Error(err)
	}
	b.mu.Lock()
	b.refuse = errEnded
	b.mu.Unlock()
	var e *Error
	if _, err := c.Lease(t.Context(), LeaseMember); !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable {
		t.Error(err)
	}
}

func TestLeasesAreCapped(t *testing.T) {
	s := &Server{leases: make(map[net.Conn]struct{})}
	fillLeases(t, s)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	e := s.addLease(a)
	if e == nil || e.Status != http.StatusTooManyRequests {
		t.Fatal(e)
	}
	var wire bytes.Buffer
	done := make(chan struct{})
	go func() { io.Copy(&wire, b); close(done) }()
	writeError(a, e)
	a.Close()
	<-done
	if !strings.Contains(wire.String(), "429") || !strings.Contains(wire.String(), `{"message":"too many leases"}`) {
		t.Error(wire.String())
	}
}
