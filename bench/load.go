package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// chunk is how many bytes are written at a time. It is the default of iperf3; larger ones hardly change the throughput of TCP.
	chunk = 128 << 10
	// dialTimeout is the time limit of a connect; a helper that needs longer has failed.
	dialTimeout = 10 * time.Second
	// readyTimeout is how long a published port may take to accept connections after its server is ready.
	readyTimeout = 5 * time.Second
	// maxFailures is the share of failed operations above which a measurement of a rate fails.
	maxFailures = 0.01
)

// Load describes what a client does.
type Load struct {
	Kind    string        // a key of clients
	Addr    string        // of the server
	Workers int           // number of connections, or of concurrent operations
	Size    int           // of a datagram, in bytes
	Warm    time.Duration // time before the window of the measurement
	Time    time.Duration // length of the window
}

// Sample is what a client measured.
type Sample struct {
	Seconds float64 `json:"seconds"`         // length of the window
	Bytes   float64 `json:"bytes,omitempty"` // that arrived in the window
	Total   float64 `json:"total,omitempty"` // bytes that arrived from "go" until the end
	Ops     float64 `json:"ops,omitempty"`   // operations, or datagrams that arrived, in the window
	Failed  float64 `json:"failed,omitempty"`
	Loss    float64 `json:"loss,omitempty"` // share of the datagrams that did not arrive
	P50     float64 `json:"p50,omitempty"`  // time of an operation in µs, 50th percentile
	P99     float64 `json:"p99,omitempty"`
	Local   string  `json:"local,omitempty"` // the client's own address
	Seen    string  `json:"seen,omitempty"`  // the client's address as the server sees it
}

// runner is a connected client; run measures.
type runner interface {
	run(l Load) (Sample, error)
	Close() error
}

var clients = map[string]func(Load) (runner, error){
	"tcp-out":   newSender,
	"tcp-in":    newReceiver,
	"tcp-rr":    newRR,
	"tcp-crr":   newCRR,
	"udp-rr":    newUDPRR,
	"udp-flood": newFlood,
	"http":      newHTTP,
	"hold":      newHolder,
}

// client connects, prints "ready", waits for a line on stdin, measures, and prints "sample" with the Sample. It keeps its connections
// open until stdin ends, so that its processor time and memory can be read.
func client(spec string) error {
	var l Load
	if err := json.Unmarshal([]byte(spec), &l); err != nil {
		return err
	}
	make, ok := clients[l.Kind]
	if !ok {
		return fmt.Errorf("no client called %q", l.Kind)
	}
	r, err := make(l)
	if err != nil {
		return err
	}
	defer r.Close()
	fmt.Println("ready")
	stdin := bufio.NewReader(os.Stdin)
	if _, err := stdin.ReadString('\n'); err != nil {
		return fmt.Errorf("waiting for the start: %w", err)
	}
	s, err := r.run(l)
	if err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	fmt.Printf("sample %s\n", text)
	_, _ = io.Copy(io.Discard, stdin)
	return nil
}

// congestionEnv is the environment variable with the congestion control of clients and servers, if that is not the machine's
// default. They set it on their sockets, because a new network namespace begins with the machine's default.
const congestionEnv = "ROOTLESSNET_BENCH_CONGESTION"

// setCongestion is the Control function of dialers and listeners. It sets the congestion control of TCP sockets.
func setCongestion(network, _ string, c syscall.RawConn) (err error) {
	name := os.Getenv(congestionEnv)
	if name == "" || !strings.HasPrefix(network, "tcp") {
		return nil
	}
	e := c.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) })
	return errors.Join(e, err)
}

var (
	dialer       = net.Dialer{Timeout: dialTimeout, Control: setCongestion}
	listenConfig = net.ListenConfig{Control: setCongestion}
)

// open connects to a server and sends the mode.
func open(addr string, mode byte) (*net.TCPConn, error) {
	c, err := dialer.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{mode}); err != nil {
		c.Close()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// reset closes a connection by RST, without TIME_WAIT, which would slow the connects of later measurements.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}

// openAll waits until the server answers, then opens n connections.
func openAll(addr string, mode byte, n int) (conns []*net.TCPConn, local, seen string, err error) {
	if local, seen, err = waitForServer(addr); err != nil {
		return nil, "", "", err
	}
	for range n {
		c, err := open(addr, mode)
		if err != nil {
			resetAll(conns)
			return nil, "", "", fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, c)
	}
	return conns, local, seen, nil
}

func resetAll(conns []*net.TCPConn) {
	for _, c := range conns {
		reset(c)
	}
}

// waitForServer waits until the server answers, and returns the client's own address and the one that the server sees.
func waitForServer(addr string) (local, seen string, err error) {
	for end := time.Now().Add(readyTimeout); ; time.Sleep(20 * time.Millisecond) {
		if local, seen, err = askAddress(addr); err == nil || time.Now().After(end) {
			return local, seen, err
		}
	}
}

func askAddress(addr string) (local, seen string, err error) {
	c, err := open(addr, modeAddress)
	if err != nil {
		return "", "", err
	}
	defer reset(c)
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", fmt.Errorf("the server's first answer: %w", err)
	}
	return c.LocalAddr().String(), strings.TrimSpace(line), nil
}

// rate runs every op repeatedly in a goroutine of its own, and returns the figures of the operations that began and ended in the window.
func rate(l Load, ops []func() error) (Sample, error) {
	type result struct {
		took   []time.Duration
		failed int
		err    error
	}
	results := make([]result, len(ops))
	begin := time.Now().Add(l.Warm)
	end := begin.Add(l.Time)
	var wg sync.WaitGroup
	for i, op := range ops {
		wg.Go(func() {
			r := &results[i]
			for t := time.Now(); t.Before(end); {
				err := op()
				done := time.Now()
				switch {
				case err != nil:
					r.failed++
					r.err = err
				case !t.Before(begin) && done.Before(end):
					r.took = append(r.took, done.Sub(t))
				}
				t = done
			}
		})
	}
	wg.Wait()
	s := Sample{Seconds: l.Time.Seconds()}
	var took []time.Duration
	var err error
	for _, r := range results {
		took = append(took, r.took...)
		s.Failed += float64(r.failed)
		err = errors.Join(err, r.err)
	}
	s.Ops = float64(len(took))
	if s.Failed > maxFailures*s.Ops {
		return s, fmt.Errorf("%.0f of %.0f failed: %w", s.Failed, s.Ops+s.Failed, err)
	}
	if len(took) == 0 {
		return s, errors.New("no operation ended in the window")
	}
	slices.Sort(took)
	s.P50, s.P99 = micros(quantile(took, 0.5)), micros(quantile(took, 0.99))
	return s, nil
}

// quantile returns the smallest value that at least the share q of the values does not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// record is the server's report, every recordEvery, of the bytes or datagrams that have arrived.
type record struct {
	When  int64 // UnixNano; client and server have the same clock
	Count uint64
}

// watch reads records from r: base is the first in the window, last the last one in it, final the last of all. It returns after the
// first record after until, or after an error.
func watch(r io.Reader, begin, end, until time.Time) (base, last, final record, err error) {
	var rec record
	for {
		if err := binary.Read(r, binary.BigEndian, &rec); err != nil {
			return base, last, final, fmt.Errorf("reading the server's records: %w", err)
		}
		if rec.When >= begin.UnixNano() && rec.When <= end.UnixNano() {
			if base.When == 0 {
				base = rec
			}
			last = rec
		}
		final = rec
		if rec.When > until.UnixNano() {
			break
		}
	}
	if last.When <= base.When {
		return base, last, final, errors.New("fewer than two of the server's records are in the window")
	}
	return base, last, final, nil
}
