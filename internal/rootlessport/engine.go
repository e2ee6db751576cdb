package rootlessport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// requestTimeout is for one request to the engine, which answers at once.
	requestTimeout = 10 * time.Second
	// lookInterval is how often a namespace whose helper has ended is looked up for the next one. Podman starts one when
	// a container is started or stopped.
	lookInterval = time.Second
	// maxReply bounds what is read of an answer.
	maxReply = 1 << 20
)

// Finder returns the control socket of the helper of ours that connects the network namespace with that inode; "" when
// there is none.
type Finder func(inode uint64) string

// engine publishes through the helper that connects the namespace.
type engine struct {
	locate func() (socket string) // the helper that is there now, of the namespace that is there now; "" when there is none
	ports  []Port
	log    *slog.Logger

	change sync.Mutex // held while ports are opened or closed
	child  netip.Addr // guarded by change
	client *restClient
	ids    []int // guarded by change; fewer than ports when some could not be opened again

	quit chan struct{}
	wg   sync.WaitGroup
}

// NamespaceInode identifies the network namespace at path.
func NamespaceInode(path string) (uint64, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: no inode", path)
	}
	return st.Ino, nil
}

// newEngine opens all ports, or none.
func newEngine(locate func() string, socket string, ports []Port, child netip.Addr, log *slog.Logger) (*engine, error) {
	e := &engine{locate: locate, ports: ports, child: child, log: log, quit: make(chan struct{})}
	if err := e.open(socket); err != nil {
		return nil, err
	}
	e.wg.Go(e.follow)
	return e, nil
}

// open publishes everything through the helper at socket. It is called with change held, or before there is another
// goroutine.
func (e *engine) open(socket string) error {
	e.client, e.ids = newRESTClient(socket), nil
	for _, p := range e.ports {
		id, err := e.client.add(p, e.child)
		if err != nil {
			e.closePorts()
			return fmt.Errorf("listen %s %s: %w", p.Proto, p.Listens()[0], err)
		}
		e.ids = append(e.ids, id)
	}
	return nil
}

func (e *engine) closePorts() {
	for _, id := range e.ids {
		if err := e.client.remove(id); err != nil {
			e.log.Debug("port not closed", "id", id, "err", err)
		}
	}
	e.ids = nil
}

// setChild leads the ports to another address.
func (e *engine) setChild(a netip.Addr) error {
	e.change.Lock()
	defer e.change.Unlock()
	e.child = a
	e.closePorts()
	return e.reopen()
}

// errNoHelper is for a namespace that nobody connects.
var errNoHelper = errors.New("the network namespace has no helper")

// reopen opens the ports by the helper that is there now. It is called with change held.
func (e *engine) reopen() error {
	socket := e.locate()
	if socket == "" {
		return errNoHelper
	}
	return e.open(socket)
}

func (e *engine) close() {
	close(e.quit)
	e.wg.Wait()
	e.change.Lock()
	defer e.change.Unlock()
	e.closePorts()
}

// follow opens the ports again when the helper has ended and another one is there. That may take several attempts: Podman
// replaces the namespace of its bridges together with the helper, whose predecessor may still have the ports.
func (e *engine) follow() {
	warned := false
	for {
		select {
		case <-e.quit:
			return
		case <-time.After(lookInterval):
		}
		e.change.Lock()
		if len(e.ids) < len(e.ports) || !e.client.alive() {
			switch err := e.reopen(); {
			case err == nil:
				warned = false
			case !warned && !errors.Is(err, errNoHelper):
				e.log.Warn("ports not opened again", "err", err)
				warned = true
			}
		}
		e.change.Unlock()
	}
}

// restClient speaks the part of RootlessKit's REST API that is about ports.
type restClient struct {
	socket string
	http   *http.Client
}

func newRESTClient(socket string) *restClient {
	return &restClient{socket, &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}}
}

// alive says whether somebody still answers on the socket.
func (c *restClient) alive() bool {
	conn, err := net.Dial("unix", c.socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

type portSpec struct {
	Proto      string `json:"proto"`
	ParentIP   string `json:"parentIP,omitempty"` // empty: every address of both families
	ParentPort int    `json:"parentPort"`
	ChildIP    string `json:"childIP,omitempty"`
	ChildPort  int    `json:"childPort"`
}

func (c *restClient) add(p Port, child netip.Addr) (id int, err error) {
	s := portSpec{Proto: p.Proto, ParentPort: int(p.HostPort), ChildPort: int(p.ChildPort)}
	if p.Host.IsValid() {
		s.ParentIP = p.Host.String()
	}
	if child.IsValid() {
		s.ChildIP = child.String()
	}
	var reply struct {
		ID int `json:"id"`
	}
	err = c.do(http.MethodPost, "/v1/ports", s, http.StatusCreated, &reply)
	return reply.ID, err
}

func (c *restClient) remove(id int) error {
	return c.do(http.MethodDelete, fmt.Sprintf("/v1/ports/%d", id), nil, http.StatusOK, nil)
}

func (c *restClient) do(method, path string, body any, want int, reply any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, "http://engine"+path, content)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return err
	}
	if resp.StatusCode != want {
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		return errors.New(e.Message)
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(text, reply)
}
