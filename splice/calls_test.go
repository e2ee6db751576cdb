//go:build amd64 || arm64

package splice

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/skip"
)

// These tests bound the number of system calls for a connection and for a round trip. They count by ptrace(2) in a child process
// that runs a Loop and nothing else; the calls of Go's own poller are included.

// callsEnv makes the test binary that child: it joins each pair of sockets it receives on descriptor 3 and acknowledges with a
// byte.
const callsEnv = "SPLICE_TEST_CALLS"

func TestMain(m *testing.M) {
	if os.Getenv(callsEnv) != "" {
		os.Exit(tracedMain())
	}
	os.Exit(m.Run())
}

func tracedMain() int {
	l, err := NewLoop(nil, nil)
	if err != nil {
		return 1
	}
	defer l.Close()
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(2*4))
	for {
		_, n, _, _, err := unix.Recvmsg(3, b[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return 0
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			return 1
		}
		pair, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			return 1
		}
		if _, err := l.Join(pair[0], pair[1], nil); err != nil {
			return 1
		}
		if _, err := unix.Write(3, b[:]); err != nil {
			return 1
		}
	}
}

// traced is the traced child process.
type traced struct {
	control int // the test's end of the child's descriptor 3
	on      atomic.Bool
	mu      sync.Mutex
	calls   map[uint64]int // by system call number, counted while on is set; guarded by mu
}

// trace starts the child. One thread starts, traces and awaits it, as ptrace(2) demands.
func trace(t *testing.T) *traced {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr := &traced{control: p[0], calls: map[uint64]int{}}
	started, done := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread that attached is the tracer
		defer close(done)
		childEnd := os.NewFile(uintptr(p[1]), "control")
		cmd := exec.Command("/proc/self/exe")
		// Keep the runtime's own activity (collector, preemption) out of the count.
		cmd.Env = append(os.Environ(), callsEnv+"=1", "GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
		cmd.ExtraFiles = []*os.File{childEnd}
		cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
		err := cmd.Start()
		childEnd.Close()
		if err == nil {
			err = tr.attach(cmd.Process.Pid)
		}
		started <- err
		if err == nil {
			tr.follow(cmd.Process.Pid)
		}
	}()
	if err := <-started; err != nil {
		unix.Close(p[0])
		skip.Missing(t, "a child cannot be traced here: %v", err)
	}
	t.Cleanup(func() { unix.Close(p[0]); <-done })
	return tr
}

func (tr *traced) attach(pid int) error {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil { // the stop at execve
		return err
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return err
	}
	return unix.PtraceSyscall(pid, 0)
}

// waitNoThread is __WNOTHREAD of wait(2): wait for children of this thread only, not for those that other threads trace.
const waitNoThread = 0x20000000

// follow resumes the child's threads from system call to system call, and counts, until the process has ended.
func (tr *traced) follow(pid int) {
	inside := map[int]bool{}
	for {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL|waitNoThread, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || tid == pid && (ws.Exited() || ws.Signaled()) {
			return
		}
		if !ws.Stopped() {
			continue
		}
		signal := 0
		switch s := ws.StopSignal(); {
		case s == unix.SIGTRAP|0x80:
			if inside[tid] = !inside[tid]; inside[tid] && tr.on.Load() {
				if n, err := callNumber(tid); err == nil {
					tr.mu.Lock()
					tr.calls[n]++
					tr.mu.Unlock()
				}
			}
		case s == unix.SIGTRAP || s == unix.SIGSTOP: // a new thread
		default:
			signal = int(s)
		}
		_ = unix.PtraceSyscall(tid, signal)
	}
}

// join sends two sockets to the child and waits until it has joined them.
func (tr *traced) join(t *testing.T, a, b int) {
	t.Helper()
	if err := unix.Sendmsg(tr.control, []byte{1}, unix.UnixRights(a, b), nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Close(a)
	unix.Close(b)
	if n, err := unix.Read(tr.control, make([]byte, 1)); n != 1 {
		t.Fatal("the child process has ended: ", err)
	}
}

// count returns the system calls during do divided by n, without epoll_pwait, and a list by name.
func (tr *traced) count(n int, do func()) (perOne float64, detail string) {
	time.Sleep(50 * time.Millisecond) // until the calls of earlier steps are over
	tr.mu.Lock()
	clear(tr.calls)
	tr.mu.Unlock()
	tr.on.Store(true)
	do()
	time.Sleep(50 * time.Millisecond)
	tr.on.Store(false)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	names := map[uint64]string{unix.SYS_EPOLL_PWAIT: "epoll_pwait", unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_RECVFROM: "recvfrom", unix.SYS_SENDTO: "sendto",
		unix.SYS_SHUTDOWN: "shutdown", unix.SYS_CLOSE: "close", unix.SYS_SETSOCKOPT: "setsockopt", unix.SYS_GETSOCKOPT: "getsockopt", unix.SYS_SPLICE: "splice"}
	var list []string
	for nr, c := range tr.calls {
		switch nr {
		case unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_RECVMSG, unix.SYS_WRITE, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_MADVISE, unix.SYS_SCHED_YIELD, unix.SYS_GETTID, unix.SYS_TGKILL:
			continue // made by the runtime itself, or for the messages on descriptor 3
		}
		name := names[nr]
		if name == "" {
			name = fmt.Sprintf("call %d", nr)
		}
		if name != "epoll_pwait" { // their number depends on how the peers are scheduled
			perOne += float64(c) / float64(n)
		}
		list = append(list, fmt.Sprintf("%s %.2f", name, float64(c)/float64(n)))
	}
	return perOne, strings.Join(list, ", ")
}

func TestCallsPerRoundTrip(t *testing.T) {
	// In each direction one recv and one send, besides fetching events.
	const n, most = 200, 5
	tr := trace(t)
	fa, a := tcpPair(t)
	fb, b := tcpPair(t)
	defer a.Close()
	defer b.Close()
	tr.join(t, fa, fb)
	buf := make([]byte, 64)
	trip := func(from, to *net.TCPConn) {
		if _, err := from.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, buf); err != nil {
			t.Fatal(err)
		}
	}
	per, detail := tr.count(n, func() {
		for range n {
			trip(a, b)
			trip(b, a)
		}
	})
	t.Logf("%.1f: %s", per, detail)
	if per > most {
		t.Errorf("%.1f system calls for a round trip, more than %d: %s", per, most, detail)
	}
	if per < 3 {
		t.Errorf("%.1f system calls for a round trip: the count is wrong", per)
	}
}

func TestCallsPerConnection(t *testing.T) {
	// Two epoll_ctl; a request and a response; FIN from the client, FIN from the server; two close.
	const n, most = 100, 14
	tr := trace(t)
	type ends struct {
		fa, fb int
		a, b   *net.TCPConn
	}
	var all []ends
	for range n {
		fa, a := tcpPair(t)
		fb, b := tcpPair(t)
		all = append(all, ends{fa, fb, a, b})
	}
	buf := make([]byte, 64)
	per, detail := tr.count(n, func() {
		for _, e := range all {
			tr.join(t, e.fa, e.fb)
			for _, way := range [][2]*net.TCPConn{{e.a, e.b}, {e.b, e.a}} {
				if _, err := way[0].Write(buf); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(way[1], buf); err != nil {
					t.Fatal(err)
				}
			}
			e.a.Close()
			if _, err := e.b.Read(buf); err != io.EOF {
				t.Fatal(err)
			}
			e.b.Close()
		}
	})
	t.Logf("%.1f: %s", per, detail)
	if per > most {
		t.Errorf("%.1f system calls for a connection, more than %d: %s", per, most, detail)
	}
	if per < 8 {
		t.Errorf("%.1f system calls for a connection: the count is wrong", per)
	}
}
