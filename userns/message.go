package userns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

// msgType is the type of a message, one of the constants; doc.go has the sequence.
type msgType string

const (
	msgSetup  msgType = "setup"  // 0 fds
	msgRun    msgType = "run"    // 3 fds
	msgSignal msgType = "signal" // 0 fds
	msgFiles  msgType = "files"  // 0 fds
	msgRelink msgType = "relink" // 0 fds; the answer is ready
	msgListen msgType = "listen" // 0 fds
	msgPool   msgType = "pool"   // 0 fds
	// msgRedirect requests a TPROXY redirect, once; msgForward then requests its rules for forwarded traffic.
	msgRedirect msgType = "redirect" // 0 fds
	msgForward  msgType = "forward"  // 0 fds

	msgReady   msgType = "ready"   // 0 or 1 fd
	msgStarted msgType = "started" // 0 fds
	msgDone    msgType = "done"    // 0 fds
	msgFailed  msgType = "failed"  // 0 fds
	msgExited  msgType = "exited"  // 0 fds
	msgStopped msgType = "stopped" // 0 fds; the command was stopped by Signal
	// msgRedirected has 4 fds, and with IPv6 5: see netns.Redirect.Files.
	msgRedirected msgType = "redirected"
	msgPoolReady  msgType = "pool-ready" // 1 fd
	// msgListening has a descriptor for each 0 of Errnos.
	msgListening msgType = "listening"
)

// message has a Type and the one body that belongs to it.
type message struct {
	Type     msgType               `json:"type"`
	Setup    *setupBody            `json:"setup,omitempty"`
	Run      *runBody              `json:"run,omitempty"`
	Files    *Files                `json:"files,omitempty"`
	Redirect *netns.RedirectConfig `json:"redirect,omitempty"`
	Listen   *listenBody           `json:"listen,omitempty"`
	Relink   *netns.Link           `json:"relink,omitempty"`
	Errnos   []int                 `json:"errnos,omitempty"`
	Signal   int                   `json:"signal,omitempty"`
	Ready    *readyBody            `json:"ready,omitempty"`
	Fail     *failBody             `json:"fail,omitempty"`
	PID      int                   `json:"pid,omitempty"`
	Code     int                   `json:"code,omitempty"`
	// Large is the size in bytes of the actual message, which is in a memfd, the last descriptor.
	Large int `json:"large,omitempty"`
}

type setupBody struct {
	Network      Network    `json:"network"`
	PIDNamespace bool       `json:"pidns,omitempty"`
	Enter        bool       `json:"enter,omitempty"` // another command in a running sandbox: nothing to set up
	Link         netns.Link `json:"link"`
	Files        Files      `json:"files"`
	Hidden       []string   `json:"hidden,omitempty"`
	Sysctls      []Sysctl   `json:"sysctls,omitempty"`
	ReadOnly     bool       `json:"readonly,omitempty"`
	GIDs         idRange    `json:"gids"` // inside, for ping_group_range
}

// runBody has bytes, not strings: neither arguments nor environment need be UTF-8.
type runBody struct {
	Argv [][]byte `json:"argv"`
	Env  [][]byte `json:"env"`
	Dir  []byte   `json:"dir,omitempty"`

	User     *Credential `json:"user,omitempty"`
	Caps     []int       `json:"caps,omitempty"`
	Terminal bool        `json:"terminal,omitempty"`
}

type readyBody struct {
	Kind     string           `json:"kind,omitempty"`
	Link     netns.LinkResult `json:"link"`
	Warnings []string         `json:"warnings,omitempty"`
}

const (
	// inlineMax is the size in bytes of the largest packet, well under the kernel's limit (net.core.wmem_default, 212992).
	inlineMax = 64 << 10
	// largeMax bounds a message in a memfd. The kernel takes at most 6 MiB of arguments and environment (fs/exec.c,
	// bprm_set_stack_limits), which base64 makes 8; hosts files with block lists are a few MiB.
	largeMax = 16 << 20
	// maxFDs is the largest number of descriptors of a message, which listening has.
	maxFDs = listenMost
)

var errProtocol = errors.New("unexpected message")

// wantFDs returns how many descriptors a message of type t has, at least and at most, and whether t is known.
func wantFDs(t msgType) (least, most int, known bool) {
	switch t {
	case msgRun:
		return 3, 3, true
	case msgReady:
		return 0, 1, true
	case msgRedirected:
		return 4, 5, true
	case msgPoolReady:
		return 1, 1, true
	case msgListening:
		return 0, listenMost, true
	case msgSetup, msgSignal, msgFiles, msgRedirect, msgForward, msgListen, msgPool, msgRelink, msgStarted, msgDone, msgFailed, msgExited, msgStopped:
		return 0, 0, true
	}
	return 0, 0, false
}

// parseMessage decodes a message and checks that it has the body of its type and no other.
func parseMessage(b []byte) (*message, error) {
	m := new(message)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %v", errProtocol, err)
	}
	if m.Large != 0 {
		if m.Large < 0 || m.Large > largeMax {
			return nil, fmt.Errorf("%w: %d bytes", errProtocol, m.Large)
		}
		return m, nil
	}
	if _, _, known := wantFDs(m.Type); !known {
		return nil, fmt.Errorf("%w %q", errProtocol, m.Type)
	}
	if (m.Setup != nil) != (m.Type == msgSetup) || (m.Run != nil) != (m.Type == msgRun) ||
		(m.Files != nil) != (m.Type == msgFiles) || (m.Ready != nil) != (m.Type == msgReady) ||
		(m.Redirect != nil) != (m.Type == msgRedirect) || (m.Listen != nil) != (m.Type == msgListen) || (m.Relink != nil) != (m.Type == msgRelink) ||
		(m.Errnos != nil) != (m.Type == msgListening) || (m.Fail != nil) != (m.Type == msgFailed) {
		return nil, fmt.Errorf("%w: %q with another body", errProtocol, m.Type)
	}
	return m, nil
}

// socket is one end of the connection between supervisor and init. One goroutine at a time may call send, and one receive.
type socket struct {
	conn *net.UnixConn
	buf  []byte
	oob  []byte
}

// socketPair returns the supervisor's end and the file that init gets.
func socketPair() (*socket, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "init")
	ours, err := newSocket(os.NewFile(uintptr(fds[0]), "supervisor"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// newSocket makes a socket of f, which it closes.
func newSocket(f *os.File) (*socket, error) {
	defer f.Close()
	typ, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, err
	}
	if typ != unix.SOCK_SEQPACKET {
		return nil, unix.EPROTOTYPE
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, unix.EPROTOTYPE
	}
	// With space for one set of credentials, which the kernel adds after passCred.
	oob := make([]byte, unix.CmsgSpace(maxFDs*4)+unix.CmsgSpace(unix.SizeofUcred))
	return &socket{conn: u, buf: make([]byte, inlineMax), oob: oob}, nil
}

func (s *socket) close() { s.conn.Close() }

// send sends m with fds, which the caller closes. pid, unless it is 0, is a process of ours, sent as credentials, which the
// kernel translates into the receiver's pid namespace (unix(7), SCM_CREDENTIALS).
func (s *socket) send(m *message, pid int, fds ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > inlineMax {
		mem, err := memfd(b)
		if err != nil {
			return err
		}
		defer mem.Close()
		fds = append(fds[:len(fds):len(fds)], mem)
		if b, err = json.Marshal(&message{Type: m.Type, Large: len(b)}); err != nil {
			return err
		}
	}
	var oob []byte
	if len(fds) > 0 {
		nums := make([]int, len(fds))
		for i, f := range fds {
			// Not Fd, which would make the file description blocking, also for the process that gets it.
			c, err := f.SyscallConn()
			if err == nil {
				err = c.Control(func(fd uintptr) { nums[i] = int(fd) })
			}
			if err != nil {
				return err
			}
		}
		oob = unix.UnixRights(nums...)
	}
	if pid != 0 {
		oob = append(oob, unix.UnixCredentials(&unix.Ucred{
			Pid: int32(pid), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})...)
	}
	_, _, err = s.conn.WriteMsgUnix(b, oob, nil)
	return err
}

func memfd(b []byte) (*os.File, error) {
	if len(b) > largeMax {
		return nil, unix.E2BIG
	}
	fd, err := unix.MemfdCreate("rootlessnet-message", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "message")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// receive reads one message. fds are as many as its type must have; the caller closes them. pid is that of the credentials
// that came with it, 0 without. io.EOF means that the other end was closed.
func (s *socket) receive() (m *message, fds []*os.File, pid int, err error) {
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(s.buf, s.oob)
	if errors.Is(err, unix.ECONNRESET) {
		// The other end was closed with a message of ours unread. The kernel reports that once, before the messages that are still
		// to be received here (unix_release_sock, __skb_try_recv_datagram): init's last one, exited, must not be lost when the
		// command ends while a signal for it is on the way.
		n, oobn, flags, _, err = s.conn.ReadMsgUnix(s.buf, s.oob)
	}
	if err != nil {
		return nil, nil, 0, err
	}
	if fds, pid, err = parseControl(s.oob[:oobn]); err != nil {
		return nil, nil, 0, err
	}
	defer func() {
		if err != nil {
			closeAll(fds)
			m, fds = nil, nil
		}
	}()
	if flags&unix.MSG_TRUNC != 0 {
		return nil, fds, 0, fmt.Errorf("%w: truncated", errProtocol)
	}
	if m, err = parseMessage(s.buf[:n]); err != nil {
		return nil, fds, 0, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		if m.Type != msgListening {
			return nil, fds, 0, fmt.Errorf("%w: truncated", errProtocol)
		}
		// The descriptors exceeded our limit of open files: these ports cannot be had; everything else goes on.
		closeAll(fds)
		fds = nil
		for i := range m.Errnos {
			m.Errnos[i] = int(unix.EMFILE)
		}
	}
	if m.Large != 0 {
		if len(fds) == 0 {
			return nil, fds, 0, fmt.Errorf("%w: no memfd", errProtocol)
		}
		mem := fds[len(fds)-1]
		fds = fds[:len(fds)-1]
		b := make([]byte, m.Large)
		_, rerr := io.ReadFull(io.NewSectionReader(mem, 0, int64(m.Large)), b)
		mem.Close()
		if rerr != nil {
			return nil, fds, 0, rerr
		}
		if m, err = parseMessage(b); err != nil {
			return nil, fds, 0, err
		}
		if m.Large != 0 {
			return nil, fds, 0, fmt.Errorf("%w: nested", errProtocol)
		}
	}
	if least, most, _ := wantFDs(m.Type); len(fds) < least || len(fds) > most {
		return nil, fds, 0, fmt.Errorf("%w: %q with %d descriptors", errProtocol, m.Type, len(fds))
	}
	return m, fds, pid, nil
}

// parseControl returns the descriptors, which package net has made close-on-exec, and the pid of control messages.
func parseControl(oob []byte) (fds []*os.File, pid int, err error) {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, 0, err
	}
	for i := range cmsgs {
		if nums, err := unix.ParseUnixRights(&cmsgs[i]); err == nil {
			for _, fd := range nums {
				fds = append(fds, os.NewFile(uintptr(fd), "received"))
			}
		} else if cred, err := unix.ParseUnixCredentials(&cmsgs[i]); err == nil {
			pid = int(cred.Pid)
		}
	}
	return fds, pid, nil
}

// passCred has the kernel send the pid of the sender, or the one that the sender names, with each message.
func (s *socket) passCred() error {
	c, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); err != nil {
		return err
	}
	return serr
}

func closeAll(fds []*os.File) {
	for _, f := range fds {
		f.Close()
	}
}
