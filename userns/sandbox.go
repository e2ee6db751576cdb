package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"rootlessnet/netns"
)

// closeTimeout is how long Close waits for init to kill its descendants before it kills init: a process in
// uninterruptible sleep (a dead NFS server) may take for ever, and must not take us along.
const closeTimeout = 5 * time.Second

// Sandbox is one init with its namespaces, as the supervisor holds it. Its methods may be called concurrently.
type Sandbox struct {
	log   *slog.Logger
	sock  *socket
	child *child
	// moved says that init's working directory is not the caller's: entering a mount namespace resets it.
	moved bool

	gone    chan struct{} // closed when init was reaped
	readEnd chan struct{} // closed when the reader has ended
	exited  chan struct{} // closed when exitCode is set
	replies chan reply    // room for one: the answer must wait for nobody, so that exited is read after it

	call sync.Mutex // held for a request and its answer

	mu       sync.Mutex
	kind     string
	link     netns.LinkResult
	linkFile *os.File
	exitCode int
	readErr  error // why the reader ended; valid once readEnd is closed

	closeOnce sync.Once
}

type reply struct {
	m   *message
	fds []*os.File
	pid int
}

// Start makes the namespaces, sets up the link, the mounts and the host name. The command is not started. ctx bounds the
// start only. On an error nothing is left. The error is an *Error.
func Start(ctx context.Context, cfg Config) (*Sandbox, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := launch(cfg.Logger, func(sock *os.File) (*child, error) {
		switch cfg.Network {
		case NetworkJoin:
			return spawnJoin(cfg.JoinPID, joinNetwork, cfg.PIDNamespace, sock)
		case NetworkAttach:
			return spawnAttach(cfg.Target, sock)
		}
		return spawnNew(cfg, sock)
	})
	if err != nil {
		return nil, err
	}
	s.moved = cfg.Network == NetworkJoin
	setup := &setupBody{Network: cfg.Network, PIDNamespace: cfg.PIDNamespace, Link: cfg.Link, Files: cfg.Files,
		Hidden: cfg.Hidden}
	if cfg.Network != NetworkJoin && cfg.Network != NetworkAttach {
		gids, warnings, err := mapIDs(ctx, s.child.pid(), cfg.IDMap)
		for _, w := range warnings {
			s.log.Warn(w)
		}
		if err != nil {
			s.Close()
			return nil, err
		}
		setup.GIDs = gids
	}
	if err := s.setup(ctx, setup); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// launch spawns init on a thread of its own and starts the reader of its messages.
func launch(log *slog.Logger, spawn func(sock *os.File) (*child, error)) (*Sandbox, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, &Error{Op: "create a socket pair", Err: err}
	}
	if err := ours.passCred(); err != nil {
		ours.close()
		theirs.Close()
		return nil, &Error{Op: "create a socket pair", Err: err}
	}
	s := &Sandbox{log: log, sock: ours, gone: make(chan struct{}), readEnd: make(chan struct{}),
		exited: make(chan struct{}), replies: make(chan reply, 1)}
	spawned := make(chan error, 1)
	go s.own(spawn, theirs, spawned)
	err = <-spawned
	theirs.Close()
	if err != nil {
		ours.close()
		return nil, err
	}
	go s.read()
	return s, nil
}

// own spawns init and reaps it. The thread stays locked in between: init's parent-death signal is bound to it.
func (s *Sandbox) own(spawn func(*os.File) (*child, error), theirs *os.File, spawned chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	s.child, err = spawn(theirs)
	spawned <- err
	if err != nil {
		return
	}
	s.child.proc.Wait()
	close(s.gone)
}

// read ends when the socket does, by either side.
func (s *Sandbox) read() {
	defer close(s.readEnd)
	for {
		m, fds, pid, err := s.sock.receive()
		if err == nil {
			switch m.Type {
			case msgExited:
				if m.Code < 0 || m.Code > 255 {
					err = fmt.Errorf("%w: exit code %d", errProtocol, m.Code)
					break
				}
				s.mu.Lock()
				s.exitCode = m.Code
				s.mu.Unlock()
				close(s.exited)
				return // its last word
			case msgReady, msgStarted, msgDone, msgFailed, msgRedirected, msgListening, msgPoolReady:
				select {
				case s.replies <- reply{m, fds, pid}:
				default: // the answer before this one was never asked for
					closeAll(fds)
					err = fmt.Errorf("%w %q", errProtocol, m.Type)
				}
			default:
				closeAll(fds)
				err = fmt.Errorf("%w %q", errProtocol, m.Type)
			}
		}
		if err != nil {
			s.mu.Lock()
			s.readErr = err
			s.mu.Unlock()
			return
		}
	}
}

// request sends m and waits for the answer, which is of type want or an error.
func (s *Sandbox) request(ctx context.Context, m *message, want msgType, fds ...*os.File) (reply, error) {
	s.call.Lock()
	defer s.call.Unlock()
	select {
	case <-s.readEnd:
		return reply{}, s.ended(string(m.Type))
	default:
	}
	if err := s.sock.send(m, 0, fds...); err != nil {
		select {
		case <-s.readEnd:
			return reply{}, s.ended(string(m.Type))
		case <-time.After(time.Second): // the reader ends at once if it was the peer that went
		}
		return reply{}, &Error{Op: string(m.Type), Err: err}
	}
	var r reply
	select {
	case r = <-s.replies:
	case <-s.readEnd:
		select {
		case r = <-s.replies: // a short command: its end has been read as well
		default:
			return reply{}, s.ended(string(m.Type))
		}
	case <-ctx.Done():
		s.sock.close() // an answer that comes late must not be taken for that of another request
		return reply{}, &Error{Op: string(m.Type), Err: ctx.Err()}
	}
	if r.m.Type == want {
		return r, nil
	}
	closeAll(r.fds)
	if r.m.Type == msgFailed {
		return reply{}, r.m.Fail.err()
	}
	s.sock.close() // out of step for good
	return reply{}, &Error{Op: string(m.Type), Err: fmt.Errorf("%w %q", errProtocol, r.m.Type)}
}

// ended is the error after the reader has ended.
func (s *Sandbox) ended(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readErr == nil || errors.Is(s.readErr, io.EOF) || errors.Is(s.readErr, net.ErrClosed) ||
		errors.Is(s.readErr, syscall.ECONNRESET) {
		return &Error{Op: op, Err: ErrClosed}
	}
	return &Error{Op: op, Err: s.readErr}
}

func (s *Sandbox) setup(ctx context.Context, b *setupBody) error {
	r, err := s.request(ctx, &message{Type: msgSetup, Setup: b}, msgReady)
	if err != nil {
		return err
	}
	for _, w := range r.m.Ready.Warnings {
		s.log.Warn(w)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kind, s.link = r.m.Ready.Kind, r.m.Ready.Link
	if len(r.fds) == 1 {
		s.linkFile = r.fds[0]
	}
	if (s.kind != "") != (s.linkFile != nil) {
		return &Error{Op: "setup", Err: fmt.Errorf("%w: link without descriptor", errProtocol)}
	}
	return nil
}

// LinkFD returns the descriptor of the link device, non-blocking, with its kind (KindTAP, KindTAPPlain or KindPacket)
// and what it can do. The first caller owns the file and closes it; later ones, and those of a sandbox without an
// uplink, get nil. The namespace of a KindPacket's far end lives as long as the descriptor.
func (s *Sandbox) LinkFD() (fd *os.File, kind string, offloads netns.LinkResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, s.linkFile = s.linkFile, nil
	return fd, s.kind, s.link
}

// InitPID is the pid of init, in the caller's pid namespace.
func (s *Sandbox) InitPID() int { return s.child.pid() }

// NetNS is the inode number that names the sandbox's network namespace, 0 if it is gone.
func (s *Sandbox) NetNS() (inode uint64) {
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", s.child.pid()), &st); err != nil {
		return 0
	}
	return st.Ino
}

// Run starts the command, once, and returns its pid in the caller's pid namespace. *ExecError tells why a command could
// not be started; another may be tried then.
func (s *Sandbox) Run(c Command) (pid int, err error) {
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Dir == "" && s.moved {
		if c.Dir, err = os.Getwd(); err != nil {
			c.Dir = "/"
		}
	}
	files := []*os.File{c.Stdin, c.Stdout, c.Stderr}
	var null *os.File
	for i := range files {
		if files[i] != nil {
			files[i].Fd() // as os/exec does: back to blocking, if it was package os that made it non-blocking
			continue
		}
		if null == nil {
			if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return 0, &ExecError{Code: CodeFailure, Err: err}
			}
			defer null.Close()
		}
		files[i] = null
	}
	r, err := s.request(context.Background(), &message{Type: msgRun,
		Run: &runBody{Argv: toBytes(c.Argv), Env: toBytes(c.Env), Dir: []byte(c.Dir)}}, msgStarted, files...)
	if err != nil {
		return 0, err
	}
	if r.pid > 0 && r.pid != s.child.pid() { // translated by the kernel
		return r.pid, nil
	}
	return r.m.PID, nil
}

// Signal sends sig to the command, and to it alone. ESRCH when there is none.
func (s *Sandbox) Signal(sig syscall.Signal) error {
	_, err := s.request(context.Background(), &message{Type: msgSignal, Signal: int(sig)}, msgDone)
	return err
}

// UpdateFiles replaces the text of resolv.conf and hosts inside, also for those who joined. A nil text is left as it is;
// a file that Config.Files did not give cannot be given later (ENOENT).
func (s *Sandbox) UpdateFiles(f Files) error {
	_, err := s.request(context.Background(), &message{Type: msgFiles, Files: &f}, msgDone)
	return err
}

// Wait waits until the command has ended and nothing is left of its descendants. exitCode is the command's, or 128+n
// when signal n killed it. An error (with exitCode 125) means that init died or Close was called first.
func (s *Sandbox) Wait() (exitCode int, err error) {
	select {
	case <-s.exited:
	case <-s.readEnd:
		select {
		case <-s.exited:
		default:
			return CodeFailure, s.ended("wait")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exitCode, nil
}

// Ended is closed when init is gone, or talks to us no more.
func (s *Sandbox) Ended() <-chan struct{} { return s.readEnd }

// Close kills every process of the sandbox that is left and waits until init is gone. It may be called more than once.
func (s *Sandbox) Close() error {
	s.closeOnce.Do(func() {
		s.sock.close() // EOF for init
		t := time.NewTimer(closeTimeout)
		defer t.Stop()
		select {
		case <-s.gone:
		case <-t.C:
			s.log.Warn("killing an init that does not end", "pid", s.child.pid())
			s.child.proc.Kill()
			<-s.gone
		}
		<-s.readEnd
		select {
		case r := <-s.replies:
			closeAll(r.fds)
		default:
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.linkFile != nil {
			s.linkFile.Close()
			s.linkFile = nil
		}
	})
	return nil
}

// ExecIn runs a command in every namespace of the running sandbox whose init pid is target, with the files of c, from
// the caller's own session and process group, and waits for it. When ctx ends the command is killed. Signals that are
// not the terminal's are for the caller to forward; a caller that wants that uses Enter.
func ExecIn(ctx context.Context, target int, c Command) (exitCode int, err error) {
	s, err := Enter(ctx, target)
	if err != nil {
		return CodeFailure, err
	}
	defer s.Close()
	if _, err := s.Run(c); err != nil {
		var ee *ExecError
		if errors.As(err, &ee) {
			return ee.Code, err
		}
		return CodeFailure, err
	}
	stop := context.AfterFunc(ctx, s.sock.close)
	defer stop()
	code, err := s.Wait()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return code, err
}

// Enter returns a Sandbox for one more command in every namespace of the running sandbox whose init pid is target.
// Closing it ends that command only; files and link are the target's.
func Enter(ctx context.Context, target int) (*Sandbox, error) {
	s, err := launch(slog.New(slog.DiscardHandler), func(sock *os.File) (*child, error) {
		return spawnJoin(target, joinAll, false, sock)
	})
	if err != nil {
		return nil, err
	}
	s.moved = true
	if err := s.setup(ctx, &setupBody{Network: NetworkJoin, Enter: true}); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func toBytes(ss []string) [][]byte {
	out := make([][]byte, len(ss))
	for i, s := range ss {
		out[i] = []byte(s)
	}
	return out
}
