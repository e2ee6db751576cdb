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

// closeTimeout is how long Close waits for init to kill its descendants before it kills init: a process in uninterruptible
// sleep (an NFS server that does not answer) may never end.
const closeTimeout = 5 * time.Second

// Sandbox is the supervisor's side of one init with its namespaces. Its methods may be called concurrently.
type Sandbox struct {
	log   *slog.Logger
	sock  *socket
	child *child
	// moved is set if init is not in the caller's working directory: entering a mount namespace changes it.
	moved bool

	reaped  chan struct{}      // closed when init was reaped
	status  syscall.WaitStatus // of init; valid once reaped is closed
	readEnd chan struct{}      // closed when the reader has ended
	exited  chan struct{}      // closed when exitCode is set
	replies chan reply         // capacity 1: the reader must not block on an answer, because exited may follow it
	stops   chan syscall.Signal

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
// start only. On an error nothing is left. The error is an *Error, or an *InterruptedError if a signal ended init.
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
		Hidden: cfg.Hidden, Sysctls: cfg.Sysctls, ReadOnly: cfg.ReadOnly}
	if cfg.Network != NetworkJoin && cfg.Network != NetworkAttach {
		gids, warnings, err := mapIDs(ctx, s.child.pid(), cfg.IDMap)
		for _, w := range warnings {
			s.log.Warn(w)
		}
		if err != nil {
			return nil, s.abandon(err)
		}
		setup.GIDs = gids
	}
	if err := s.setup(ctx, setup); err != nil {
		return nil, s.abandon(err)
	}
	return s, nil
}

// abandon closes a sandbox that could not be started, and returns err or, if a signal ended init, that.
func (s *Sandbox) abandon(err error) error {
	s.Close()
	if e := interruption(s.status); e != nil {
		return e
	}
	return err
}

// launch spawns init on a thread of its own and starts the goroutine that reads its messages.
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
	s := &Sandbox{log: log, sock: ours, reaped: make(chan struct{}), readEnd: make(chan struct{}),
		exited: make(chan struct{}), replies: make(chan reply, 1), stops: make(chan syscall.Signal, 1)}
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

// own spawns init and reaps it. The goroutine stays locked to its thread meanwhile, since the parent-death signal of init is
// sent when that thread ends.
func (s *Sandbox) own(spawn func(*os.File) (*child, error), theirs *os.File, spawned chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	s.child, err = spawn(theirs)
	spawned <- err
	if err != nil {
		return
	}
	if state, err := s.child.proc.Wait(); err == nil {
		s.status, _ = state.Sys().(syscall.WaitStatus)
	}
	close(s.reaped)
}

// read receives messages until either side closes the socket.
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
				return // the last message
			case msgStopped:
				select {
				case s.stops <- syscall.Signal(m.Signal):
				default: // an earlier stop was not taken yet
				}
			case msgReady, msgStarted, msgDone, msgFailed, msgRedirected, msgListening, msgPoolReady:
				select {
				case s.replies <- reply{m, fds, pid}:
				default: // an answer without a request
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
		case <-time.After(time.Second): // the reader ends at once if init has closed its end
		}
		return reply{}, &Error{Op: string(m.Type), Err: err}
	}
	var r reply
	select {
	case r = <-s.replies:
	case <-s.readEnd:
		select {
		case r = <-s.replies: // a short command: its end has been read after the answer
		default:
			return reply{}, s.ended(string(m.Type))
		}
	case <-ctx.Done():
		s.sock.close() // a late answer must not be taken for that of another request
		return reply{}, &Error{Op: string(m.Type), Err: ctx.Err()}
	}
	if r.m.Type == want {
		return r, nil
	}
	closeAll(r.fds)
	if r.m.Type == msgFailed {
		return reply{}, r.m.Fail.err()
	}
	s.sock.close() // requests and answers do not match any more
	return reply{}, &Error{Op: string(m.Type), Err: fmt.Errorf("%w %q", errProtocol, r.m.Type)}
}

// ended is the error of op after the reader has ended.
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

// LinkFD returns the descriptor of the link device, non-blocking, with its kind (netns.KindTAP, KindTAPPlain or KindPacket) and
// its offloads. The first caller owns the file and closes it; later ones, and those of a sandbox without an uplink, get nil.
// The namespace of the far end of a KindPacket lives as long as the descriptor.
func (s *Sandbox) LinkFD() (fd *os.File, kind string, offloads netns.LinkResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, s.linkFile = s.linkFile, nil
	return fd, s.kind, s.link
}

// InitPID is the pid of init, in the caller's pid namespace.
func (s *Sandbox) InitPID() int { return s.child.pid() }

// NetNS is the inode number that identifies the sandbox's network namespace, 0 if init has ended.
func (s *Sandbox) NetNS() (inode uint64) {
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", s.child.pid()), &st); err != nil {
		return 0
	}
	return st.Ino
}

// Run starts the command, once, and returns its pid in the caller's pid namespace. An *ExecError gives the reason why the command could not
// be started; Run may be called again then.
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
			files[i].Fd() // makes it blocking again if package os has made it non-blocking, as os/exec does
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
		Run: &runBody{Argv: toBytes(c.Argv), Env: toBytes(c.Env), Dir: []byte(c.Dir), User: c.User, Caps: c.Caps, Terminal: c.Terminal}}, msgStarted, files...)
	if err != nil {
		return 0, err
	}
	if r.pid > 0 && r.pid != s.child.pid() { // translated by the kernel
		return r.pid, nil
	}
	return r.m.PID, nil
}

// Signal sends sig to the command, not to its descendants. ESRCH: it has not started.
func (s *Sandbox) Signal(sig syscall.Signal) error {
	_, err := s.request(context.Background(), &message{Type: msgSignal, Signal: int(sig)}, msgDone)
	return err
}

// Stops delivers the signal by which the command was stopped, each time; if the channel is full, only the first.
func (s *Sandbox) Stops() <-chan syscall.Signal { return s.stops }

// UpdateFiles replaces the text of resolv.conf and hosts inside, also for processes that joined the sandbox. A nil text leaves a
// file as it is; a file without a text in Config.Files cannot get one later (ENOENT).
func (s *Sandbox) UpdateFiles(f Files) error {
	_, err := s.request(context.Background(), &message{Type: msgFiles, Files: &f}, msgDone)
	return err
}

// Wait waits until the command and all its descendants have ended. exitCode is the command's, or 128+n if signal n killed it. An
// error (with exitCode 125) means that init was killed or Close was called first.
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

// Ended is closed when the connection to init has ended, mostly because init has.
func (s *Sandbox) Ended() <-chan struct{} { return s.readEnd }

// Close has init kill every process of the sandbox, and waits until init has ended. It may be called more than once.
func (s *Sandbox) Close() error {
	s.closeOnce.Do(func() {
		s.sock.close() // EOF for init
		t := time.NewTimer(closeTimeout)
		defer t.Stop()
		select {
		case <-s.reaped:
		case <-t.C:
			s.log.Warn("killing the sandbox's init, which did not end in time", "pid", s.child.pid(), "timeout", closeTimeout)
			s.child.proc.Kill()
			<-s.reaped
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

func toBytes(ss []string) [][]byte {
	out := make([][]byte, len(ss))
	for i, s := range ss {
		out[i] = []byte(s)
	}
	return out
}
