package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

// Redirect sets up a TPROXY redirect inside, whole or not at all; once. It ends with the sandbox.
func (s *Sandbox) Redirect(ctx context.Context, c netns.RedirectConfig) (*netns.RedirectHandles, error) {
	r, err := s.request(ctx, &message{Type: msgRedirect, Redirect: &c}, msgRedirected)
	if err != nil {
		return nil, err
	}
	return netns.NewRedirectHandles(r.fds, c)
}

// RedirectForwarded has the redirect take TCP that the namespace forwards, too. Further calls do nothing. From then on the
// namespace tracks its connections (conntrack).
func (s *Sandbox) RedirectForwarded(ctx context.Context, h *netns.RedirectHandles) error {
	if _, err := s.request(ctx, &message{Type: msgForward}, msgDone); err != nil {
		return err
	}
	h.Pool.FillForwarded()
	return nil
}

// SocketPool opens a pool of sockets of the namespace, without a redirect. The caller closes it.
func (s *Sandbox) SocketPool(ctx context.Context, o netns.PoolOptions) (*netns.Pool, error) {
	r, err := s.request(ctx, &message{Type: msgPool}, msgPoolReady)
	if err != nil {
		return nil, err
	}
	p, err := netns.NewPool(r.fds[0], o)
	if err != nil {
		return nil, &Error{Op: "open sockets", Err: err}
	}
	return p, nil
}

// Relink gives the uplink other addresses, routes and gateways: those of l; its other fields are ignored. What is the
// same before and after is not touched, so that connections of an address that stays go on. What the kernel refuses is a
// warning. For a bare link there is nothing to do.
func (s *Sandbox) Relink(ctx context.Context, l netns.Link) error {
	l, err := l.WithDefaults()
	if err != nil {
		return &Error{Op: "configuration", Err: err}
	}
	r, err := s.request(ctx, &message{Type: msgRelink, Relink: &l}, msgReady)
	if err != nil {
		return err
	}
	for _, w := range r.m.Ready.Warnings {
		s.log.Warn(w)
	}
	return nil
}

// listenBody requests sockets on the namespace's own loopback, all of one protocol.
type listenBody struct {
	Proto string   `json:"proto"` // "tcp" or "udp"
	Ports []uint16 `json:"ports"`
}

// listenMost is how many sockets one message requests: their descriptors go into one answer (SCM_MAX_FD is 253), and for a
// moment init has as many open; its limit may be the usual 1024.
const listenMost = 64

// Listen opens sockets inside for what the namespace sends to its own loopback (netns.ListenLoopback): TCP ones listening, UDP
// ones bound. Ports below 1024 need no privilege of the caller, since init opens the sockets. files and errs are parallel to
// ports, and one of each pair is nil; an error is an errno of bind(2). The files are non-blocking and the caller's. err means
// that none was opened.
func (s *Sandbox) Listen(ctx context.Context, proto string, ports []uint16) (files []*os.File, errs []error, err error) {
	for len(ports) > 0 {
		n := min(len(ports), listenMost)
		r, err := s.request(ctx, &message{Type: msgListen, Listen: &listenBody{Proto: proto, Ports: ports[:n]}}, msgListening)
		if err == nil && (len(r.m.Errnos) != n || len(r.fds) != countZero(r.m.Errnos)) {
			closeAll(r.fds)
			err = &Error{Op: "listen inside", Err: fmt.Errorf("%w: %d descriptors", errProtocol, len(r.fds))}
		}
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		fds := r.fds
		for _, e := range r.m.Errnos {
			if e != 0 {
				files, errs = append(files, nil), append(errs, syscall.Errno(e))
				continue
			}
			files, errs = append(files, fds[0]), append(errs, nil)
			fds = fds[1:]
		}
		ports = ports[n:]
	}
	return files, errs, nil
}

func countZero(list []int) (n int) {
	for _, e := range list {
		if e == 0 {
			n++
		}
	}
	return n
}

// listenInside is init's part of Listen. errnos has 0 for each port whose descriptor is in fds.
func listenInside(b *listenBody) (fds []*os.File, errnos []int, err error) {
	if len(b.Ports) > listenMost || b.Proto != "tcp" && b.Proto != "udp" {
		return nil, nil, &Error{Op: "listen", Err: errProtocol}
	}
	for _, port := range b.Ports {
		f, err := netns.ListenLoopback(b.Proto, port)
		if err != nil {
			errno := unix.EIO
			errors.As(err, &errno)
			errnos = append(errnos, int(errno))
			continue
		}
		fds, errnos = append(fds, f), append(errnos, 0)
	}
	return fds, errnos, nil
}
