package slirp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Limits of the API.
const (
	// maxRequest is the maximum size in bytes of a request. It is that of the original, which refuses longer requests too.
	maxRequest = 4096
	// requestTimeout is how long a caller may take to send the request and to read the reply.
	requestTimeout = 10 * time.Second
	// maxClients is how many connections are served at the same time. Callers send one request after the other.
	maxClients = 16
	// acceptPause is the pause after a failed accept, which mostly means that the limit of open files is reached.
	acceptPause = 100 * time.Millisecond
)

// Forward is one forwarded port.
type Forward struct {
	Proto               string // "tcp" or "udp"
	HostAddr, GuestAddr netip.Addr
	HostPort, GuestPort uint16
}

// Forwarder opens and closes ports. Its methods are not called concurrently.
type Forwarder interface {
	Add(Forward) error
	Remove(Forward) error
}

// API serves the API socket until Close.
type API struct {
	path  string
	guest netip.Addr
	fwd   Forwarder
	log   *slog.Logger
	l     *net.UnixListener
	slots chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // open connections; nil after Close; guarded by mu

	change sync.Mutex // held while a request is carried out
	next   int        // id that was given last; guarded by change
	list   []entry    // guarded by change; in the order of ids
}

// entry is one forwarded port as list_hostfwd returns it; the order of the fields is that of the original's keys.
type entry struct {
	ID        int        `json:"id"`
	Proto     string     `json:"proto"`
	HostAddr  netip.Addr `json:"host_addr"`
	HostPort  uint16     `json:"host_port"`
	GuestAddr netip.Addr `json:"guest_addr"`
	GuestPort uint16     `json:"guest_port"`
}

func (e entry) forward() Forward {
	return Forward{e.Proto, e.HostAddr, e.GuestAddr, e.HostPort, e.GuestPort}
}

// Listen starts to serve a unix socket at path, and replaces an existing socket. guest is the address that ports are forwarded to if
// the request names none.
func Listen(path string, guest netip.Addr, fwd Forwarder, log *slog.Logger) (*API, error) {
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("API socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	a := &API{path: path, guest: guest, fwd: fwd, log: log, l: l, slots: make(chan struct{}, maxClients), conns: map[net.Conn]struct{}{}}
	a.wg.Go(a.accept)
	return a, nil
}

// Close removes the socket, closes all connections and waits until no request is being served. Forwarded ports stay open.
func (a *API) Close() {
	a.mu.Lock()
	conns := a.conns
	a.conns = nil
	a.mu.Unlock()
	_ = a.l.Close() // this deletes the socket file
	for c := range conns {
		_ = c.Close()
	}
	a.wg.Wait()
}

func (a *API) accept() {
	for {
		c, err := a.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			a.log.Warn("API socket: connection not accepted", "err", err)
			time.Sleep(acceptPause)
			continue
		}
		if !a.enter(c) {
			_ = c.Close()
			return
		}
		a.slots <- struct{}{}
		a.wg.Go(func() {
			defer func() { <-a.slots }()
			defer a.leave(c)
			a.serve(c)
		})
	}
}

func (a *API) enter(c net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns == nil {
		return false
	}
	a.conns[c] = struct{}{}
	return true
}

func (a *API) leave(c net.Conn) {
	a.mu.Lock()
	delete(a.conns, c)
	a.mu.Unlock()
	_ = c.Close()
}

func (a *API) serve(c *net.UnixConn) {
	_ = c.SetDeadline(time.Now().Add(requestTimeout))
	request, err := readRequest(c)
	if err != nil {
		a.log.Debug("API socket: reading a request failed", "err", err)
		if !errors.Is(err, errTooLarge) {
			return
		}
	}
	var reply any
	if err == nil {
		a.change.Lock()
		reply, err = a.handle(request)
		a.change.Unlock()
	}
	if err != nil {
		a.log.Warn("API socket: request refused", "err", err)
		reply = failure(err)
	}
	text, err := json.Marshal(reply)
	if err != nil {
		a.log.Error("API socket: encoding a reply failed", "err", err)
		return
	}
	if _, err := c.Write(text); err != nil {
		a.log.Debug("API socket: sending a reply failed", "err", err)
	}
	// Closing a socket with unread data would reset the connection, and the caller might lose the reply.
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
}

var errTooLarge = errors.New("too large message")

// readRequest reads until a JSON value is complete, the caller has ended its side of the stream, or maxRequest is reached. Some
// callers end their side only after they have the reply.
func readRequest(r io.Reader) ([]byte, error) {
	buf := make([]byte, 0, maxRequest)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case len(buf) == cap(buf):
			return nil, errTooLarge
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return nil, err
		case json.Valid(buf):
			return buf, nil
		}
	}
}

// failure returns the reply for an error.
func failure(err error) any {
	type desc struct {
		Desc string `json:"desc"`
	}
	return struct {
		Error desc `json:"error"`
	}{desc{"bad request: " + err.Error()}}
}

// handle carries out one request. The caller holds change. The texts of its errors are those of the original.
func (a *API) handle(request []byte) (any, error) {
	var value any
	// Data after the value is ignored, as in the original.
	if err := json.NewDecoder(bytes.NewReader(request)).Decode(&value); err != nil {
		return nil, errors.New("cannot parse JSON")
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("json_object() failed")
	}
	execute, ok := object["execute"].(string)
	if !ok {
		return nil, errors.New("no execute found")
	}
	arguments, _ := object["arguments"].(map[string]any) // nil reads as an object without arguments
	switch execute {
	case "add_hostfwd":
		return a.add(arguments)
	case "list_hostfwd":
		return a.entries(), nil
	case "remove_hostfwd":
		return a.remove(arguments)
	}
	return nil, errors.New("unknown execute")
}

func (a *API) add(arguments map[string]any) (any, error) {
	e, bad := a.parse(arguments)
	if bad != "" {
		return nil, fmt.Errorf("add_hostfwd: bad arguments.%s", bad)
	}
	if err := a.fwd.Add(e.forward()); err != nil {
		a.log.Warn("port not forwarded", "proto", e.Proto, "host", netip.AddrPortFrom(e.HostAddr, e.HostPort), "err", err)
		return nil, errors.New("add_hostfwd: slirp_add_hostfwd failed")
	}
	a.next++
	e.ID = a.next
	a.list = append(a.list, e)
	return returned(map[string]int{"id": e.ID}), nil
}

// parse checks the arguments in the order in which the original does; bad is the name of the first invalid one.
func (a *API) parse(arguments map[string]any) (e entry, bad string) {
	e = entry{HostAddr: netip.IPv4Unspecified(), GuestAddr: a.guest}
	e.Proto, _ = arguments["proto"].(string)
	if e.Proto != "tcp" && e.Proto != "udp" {
		return e, "proto"
	}
	var ok bool
	if e.HostAddr, ok = address(arguments, "host_addr", e.HostAddr); !ok {
		return e, "host_addr"
	}
	if e.HostPort, ok = port(arguments["host_port"]); !ok {
		return e, "host_port"
	}
	if e.GuestAddr, ok = address(arguments, "guest_addr", e.GuestAddr); !ok {
		return e, "guest_addr"
	}
	if e.GuestPort, ok = port(arguments["guest_port"]); !ok {
		return e, "guest_port"
	}
	return e, ""
}

// address parses an IPv4 address. If it is absent, empty (as Podman sends it) or 0.0.0.0, the address is missing.
func address(arguments map[string]any, key string, missing netip.Addr) (netip.Addr, bool) {
	value, ok := arguments[key]
	if !ok || value == nil {
		return missing, true
	}
	text, ok := value.(string)
	if ok && text == "" {
		return missing, true
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() {
		return a, false
	}
	if a.IsUnspecified() {
		return missing, true
	}
	return a, true
}

func port(value any) (uint16, bool) {
	n, ok := value.(float64)
	if !ok || n < 1 || n > math.MaxUint16 || n != math.Trunc(n) {
		return 0, false
	}
	return uint16(n), true
}

func (a *API) remove(arguments map[string]any) (any, error) {
	id, ok := arguments["id"].(float64)
	for i, e := range a.list {
		if !ok || float64(e.ID) != id {
			continue
		}
		if err := a.fwd.Remove(e.forward()); err != nil {
			a.log.Warn("port not removed", "id", e.ID, "err", err)
			return nil, errors.New("remove_hostfwd: slirp_remove_hostfwd failed")
		}
		a.list = append(a.list[:i:i], a.list[i+1:]...)
		return returned(struct{}{}), nil
	}
	return nil, errors.New("remove_hostfwd: bad arguments.id")
}

// entries returns the reply of list_hostfwd, with the entries under both keys (see the package documentation).
func (a *API) entries() any {
	list := append([]entry{}, a.list...)
	type entries struct {
		Entries []entry `json:"entries"`
	}
	return struct {
		Return  entries `json:"return"`
		Entries []entry `json:"entries"`
	}{entries{list}, list}
}

func returned(value any) any {
	return struct {
		Return any `json:"return"`
	}{value}
}
