package userns

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

// Init runs init and never returns if this package executed the process as init; otherwise it returns at once. It must be called from an init function or at the very start of main of every program that uses this package.
func Init() {
	if len(os.Args) == 0 || os.Args[0] != initArgv0 {
		return
	}
	runtime.LockOSThread() // the command's parent-death signal is bound to the thread that forks it
	// Executed by the path /proc/self/exe, it would be "exe" in ps, which shows the name of the first thread: this one.
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData(initName+"\x00"))), 0, 0, 0)
	os.Exit(initMain())
}

// initGC is init's GOGC after set-up: init allocates almost nothing from then on, and should keep its memory small.
const initGC = 20

// releaseAfter is how long after set-up init gives memory back that only the set-up needed. It is longer than most short commands
// run, so that these do not pay for it.
const releaseAfter = 500 * time.Millisecond

// initState is the state of init, which the main goroutine alone uses.
type initState struct {
	sock  *socket
	proc  *procDir
	files *fileSet
	cmd   int // pid of the command; 0 before it started
	ready bool
	// redirect is the TPROXY redirect; nil for none.
	redirect *netns.Redirect
	link     *netns.Link // the uplink as it is configured; nil for none
	restore  func()      // restores a namespace that was attached to; nil in any other
}

type request struct {
	m   *message
	fds []*os.File
}

func initMain() int {
	sock, err := newSocket(os.NewFile(initFD, "supervisor"))
	if err != nil {
		fmt.Fprintf(os.Stderr, "rootlessnet: init without its supervisor: %v\n", err)
		return CodeFailure
	}
	// The command gets no descriptor that the supervisor's caller leaked.
	if err := CloseInherited(); err != nil {
		sock.send(&message{Type: msgFailed, Fail: toFail(err)}, 0)
		return CodeFailure
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		sock.send(&message{Type: msgFailed, Fail: toFail(&Error{Op: "become a subreaper", Err: err})}, 0)
		return CodeFailure
	}
	catchTerminalSignals()
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, syscall.SIGCHLD)

	s := &initState{sock: sock}
	defer func() {
		s.killAll()
		s.files.close()
		if s.restore != nil {
			if s.redirect != nil {
				s.redirect.Close()
			}
			s.restore()
		}
	}()
	requests := make(chan request)
	go readRequests(sock, requests)
	var release <-chan time.Time // nil until the set-up is over
	for {
		select {
		case r, open := <-requests:
			if !open {
				return 0
			}
			answer, out, pid := s.handle(r)
			closeAll(r.fds)
			err := sock.send(answer, pid, out...)
			if pid != 0 && errors.Is(err, unix.EPERM) {
				// Sending a pid needs a pid namespace that our user namespace owns. In another one the number is the supervisor's already.
				err = sock.send(answer, 0, out...)
			}
			closeAll(out)
			if err != nil {
				return CodeFailure
			}
			if answer.Type == msgStarted || answer.Type == msgReady && s.restore != nil {
				release = time.After(releaseAfter)
			}
		case <-release:
			debug.SetGCPercent(initGC)
			debug.FreeOSMemory()
			ReleaseCode()
		case <-sigchld:
			code, ended, stopped := s.reap()
			if ended {
				s.killAll()
				sock.send(&message{Type: msgExited, Code: code}, 0)
				return 0
			}
			if stopped != 0 {
				sock.send(&message{Type: msgStopped, Signal: int(stopped)}, 0)
			}
		}
	}
}

// catchTerminalSignals catches the terminal's signals and ignores them: the terminal sends them to the command as well, which
// is in the same process group. Those that the caller ignored stay ignored, in the command too.
func catchTerminalSignals() {
	void := make(chan os.Signal, 1) // never read: a full channel drops
	for _, sig := range terminalSignals {
		if !signal.Ignored(sig) {
			signal.Notify(void, sig)
		}
	}
}

// readRequests sends what arrives on sock to out, until the supervisor has closed its end or breaks the protocol.
func readRequests(sock *socket, out chan<- request) {
	defer close(out)
	for {
		m, fds, _, err := sock.receive()
		if err != nil {
			return
		}
		out <- request{m, fds}
	}
}

// handle carries out the request r. It returns the answer, with the descriptors and the pid to send with it.
func (s *initState) handle(r request) (answer *message, fds []*os.File, pid int) {
	var err error
	switch {
	case r.m.Type == msgSetup && !s.ready:
		var ready *readyBody
		var link *os.File
		if ready, link, err = s.setup(r.m.Setup); err == nil {
			s.ready = true
			if link != nil {
				fds = []*os.File{link}
			}
			return &message{Type: msgReady, Ready: ready}, fds, 0
		}
	case r.m.Type == msgRun && s.ready && s.cmd == 0 && s.restore == nil:
		if s.cmd, err = startCommand(r.m.Run, r.fds); err == nil {
			return &message{Type: msgStarted, PID: s.cmd}, nil, s.cmd
		}
	case r.m.Type == msgSignal && s.ready:
		err = s.signal(r.m.Signal)
		if err == nil {
			return &message{Type: msgDone}, nil, 0
		}
	case r.m.Type == msgFiles && s.ready:
		if err = s.files.update(r.m.Files); err == nil {
			return &message{Type: msgDone}, nil, 0
		}
	case r.m.Type == msgRedirect && s.ready && s.redirect == nil:
		if s.redirect, err = netns.NewRedirect(r.m.Redirect, s.restore == nil); err == nil {
			return &message{Type: msgRedirected}, s.redirect.Files(), 0
		}
		s.redirect = nil
	case r.m.Type == msgRelink && s.ready && s.link != nil:
		var w warnings
		if err = netns.Relink(s.link, r.m.Relink, w.add); err == nil {
			return &message{Type: msgReady, Ready: &readyBody{Warnings: w}}, nil, 0
		}
	case r.m.Type == msgPool && s.ready:
		var f *os.File
		if f, err = netns.ServePool(); err == nil {
			return &message{Type: msgPoolReady}, []*os.File{f}, 0
		}
		err = &Error{Op: "open sockets", Err: err}
	case r.m.Type == msgListen && s.ready:
		var errnos []int
		if fds, errnos, err = listenInside(r.m.Listen); err == nil {
			return &message{Type: msgListening, Errnos: errnos}, fds, 0
		}
	case r.m.Type == msgForward && s.redirect != nil:
		if err = s.redirect.AddForwarding(); err == nil {
			return &message{Type: msgDone}, nil, 0
		}
	default:
		err = &Error{Op: "handshake", Err: fmt.Errorf("%w %q", errProtocol, r.m.Type)}
	}
	return &message{Type: msgFailed, Fail: toFail(err)}, nil, 0
}

func (s *initState) signal(n int) error {
	if s.cmd == 0 {
		return &Error{Op: "signal", Err: syscall.ESRCH}
	}
	if err := syscall.Kill(s.cmd, syscall.Signal(n)); err != nil {
		return &Error{Op: "signal", Err: err}
	}
	return nil
}

// setup sets up mounts, host name and network as b says. The file is the link device's, nil without one.
func (s *initState) setup(b *setupBody) (*readyBody, *os.File, error) {
	var w warnings
	ready := new(readyBody)
	var dev *netns.Device
	fail := func(err error) (*readyBody, *os.File, error) {
		if dev != nil {
			dev.File.Close()
		}
		return nil, nil, err
	}
	var err error
	if b.Network == NetworkAttach {
		// The working directory would keep its file system from being unmounted.
		if err := unix.Chdir("/"); err != nil {
			return fail(&Error{Op: "change directory", Err: err})
		}
	} else if !b.Enter {
		if s.files, err = setupMounts(b, &w); err != nil {
			return fail(err)
		}
		if b.ReadOnly {
			if err := readOnly(b.Hidden); err != nil {
				return fail(err)
			}
		}
		if b.Files.Hostname != "" {
			if err := unix.Sethostname([]byte(b.Files.Hostname)); err != nil {
				return fail(&Error{Op: "set the host name", Err: err, Hint: netns.HintDoctor})
			}
		}
	}
	// Opened now, since the command may mount something over it.
	if s.proc, err = openProc(); err != nil {
		return fail(&Error{Op: "open /proc", Err: err})
	}
	if b.Network == NetworkNew || b.Network == NetworkAttach {
		s.link = &b.Link
	}
	switch b.Network {
	case NetworkNew, NetworkNone:
		if dev, err = netns.SetUp(s.link, netns.GIDRange(b.GIDs), w.add); err != nil {
			return fail(err)
		}
	case NetworkAttach:
		if dev, s.restore, err = netns.Attach(s.link, w.add); err != nil {
			return fail(err)
		}
	}
	for _, c := range b.Sysctls {
		if err := c.write(); err != nil {
			return fail(err)
		}
	}
	if err := dropAmbient(); err != nil {
		return fail(err)
	}
	ready.Warnings = w
	if dev == nil {
		return ready, nil, nil
	}
	ready.Kind, ready.Link = dev.Kind, dev.Result
	return ready, dev.File, nil
}

// dropAmbient removes the ambient and inheritable capabilities of the calling thread, which forks the command: the command then
// has only the capabilities that execve gives to uid 0. init keeps its own.
func dropAmbient() error {
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err == nil {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err = unix.Capget(&hdr, &data[0]); err == nil {
			data[0].Inheritable, data[1].Inheritable = 0, 0
			err = unix.Capset(&hdr, &data[0])
		}
	}
	if err != nil {
		return &Error{Op: "drop ambient capabilities", Err: err}
	}
	return nil
}

// warnings are sent with ready; the supervisor logs them.
type warnings []string

func (w *warnings) add(format string, args ...any) { *w = append(*w, fmt.Sprintf(format, args...)) }
