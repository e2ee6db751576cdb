package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"time"

	"rootlessnet/internal/nettest/topo"
)

// series is one figure of a metric.
type series struct {
	suffix  string // appended to the metric's name
	unit    string
	lowWins bool
}

// metric is something to measure. take returns a value for each of its series, NaN for one that cannot be measured.
type metric struct {
	name       string
	series     []series
	perMTU     bool // measured at every MTU, not only at the first one
	ports      bool // measures a published port
	slow       bool // left out with -quick
	onlyByName bool // measured only if selected with -only
	take       func(tb *testbed, h *helper, mtu int, s settings) ([]float64, error)
}

// outcome is a Sample with the processor time that was used for it, in seconds.
type outcome struct {
	Sample
	helper float64 // of the helper's processes
	total  float64 // of these, the client and the server
}

// errNotHere is returned by a measurement that does not apply to a helper or is impossible on this machine.
var errNotHere = errors.New("not measured")

var (
	bulkSeries = []series{{"", "Gb/s", false}, {".cpu-helper", "s/GB", true}, {".cpu", "s/GB", true}}
	rateSeries = []series{{"", "1/s", false}, {".p50", "µs", true}, {".p99", "µs", true}}
	lossSeries = []series{{"", "1/s", false}, {".loss", "%", true}}
)

func metrics(s settings) []metric {
	bulk := func(name string, l Load, ports, slow bool) metric {
		return metric{name: name, series: bulkSeries, perMTU: !ports, ports: ports, slow: slow, take: takeBulk(l, ports)}
	}
	rate := func(name string, l Load, ports, slow bool) metric {
		return metric{name: name, series: rateSeries, ports: ports, slow: slow, take: takeRate(l, ports)}
	}
	return []metric{
		bulk("tcp-out", Load{Kind: "tcp-out", Workers: 1}, false, false),
		bulk("tcp-in", Load{Kind: "tcp-in", Workers: 1}, false, false),
		bulk("tcp-out-8", Load{Kind: "tcp-out", Workers: 8}, false, false),
		bulk("tcp-in-8", Load{Kind: "tcp-in", Workers: 8}, false, true),
		bulk("pub-in", Load{Kind: "tcp-out", Workers: 1}, true, false),
		bulk("pub-out", Load{Kind: "tcp-in", Workers: 1}, true, false),
		{name: "pub-source", series: []series{{"", "real", false}}, ports: true, take: source},
		{name: "iperf3-out", series: []series{{"", "Gb/s", false}}, perMTU: true, onlyByName: true, take: iperf()},
		{name: "iperf3-in", series: []series{{"", "Gb/s", false}}, perMTU: true, onlyByName: true, take: iperf("-R")},
		rate("tcp-rr", Load{Kind: "tcp-rr", Workers: 1}, false, false),
		rate("tcp-rr-16", Load{Kind: "tcp-rr", Workers: 16}, false, true),
		rate("tcp-crr", Load{Kind: "tcp-crr", Workers: 1}, false, false),
		rate("tcp-crr-16", Load{Kind: "tcp-crr", Workers: 16}, false, false),
		rate("pub-crr", Load{Kind: "tcp-crr", Workers: 1}, true, false),
		rate("pub-crr-16", Load{Kind: "tcp-crr", Workers: 16}, true, true),
		rate("udp-rr", Load{Kind: "udp-rr", Workers: 1}, false, false),
		{name: "udp-1400", series: lossSeries, take: takeFlood(1400)},
		{name: "udp-9000", series: lossSeries, take: takeFlood(9000)},
		rate("http-1", Load{Kind: "http", Workers: 1}, true, true),
		rate("http-16", Load{Kind: "http", Workers: 16}, true, false),
		rate("http-64", Load{Kind: "http", Workers: 64}, true, true),
		{name: "startup", series: []series{{"", "ms", true}}, take: startup},
		{name: "memory", series: []series{{".rss", "MB", true}, {".pss", "MB", true},
			{fmt.Sprintf(".%d-conns", s.conns), "MB", true}, {".conn", "KB", true}}, take: memory},
	}
}

// trial runs one client and returns what it measured. With published the server is in the sandbox, on a published port, and the client
// is outside; otherwise the client is in the sandbox.
func trial(tb *testbed, h *helper, mtu int, s settings, l Load, published bool) (outcome, error) {
	l.Time, l.Warm = s.time, s.warm
	at := tb.site(h)
	if !published {
		l.Addr = tb.serverAt()
		c, err := tb.start(at.inside, h.wrap(tb.clientLine(l), mtu, 0), h.env)
		if err != nil {
			return outcome{}, err
		}
		defer c.stop()
		return tb.do(c, at.server, l)
	}
	port := tb.publish()
	line := []string{tb.self, "serve", fmt.Sprint(port), "1"}
	if l.Kind == "http" {
		line = []string{tb.self, "serve-http", fmt.Sprint(port)}
	}
	srv, err := tb.start(at.inside, h.wrap(line, mtu, port), h.env)
	if err != nil {
		return outcome{}, err
	}
	defer srv.stop()
	l.Addr = netip.AddrPortFrom(topo.Here4, uint16(port)).String()
	c, err := tb.start(at.There, tb.clientLine(l), nil)
	if err != nil {
		return outcome{}, fmt.Errorf("%w; standard error of the server and its helper: %s", err, srv.stderrTail())
	}
	defer c.stop()
	return tb.do(c, srv, l)
}

func (tb *testbed) clientLine(l Load) []string {
	spec, err := json.Marshal(l)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return []string{tb.self, "client", string(spec)}
}

func takeBulk(l Load, published bool) func(*testbed, *helper, int, settings) ([]float64, error) {
	return func(tb *testbed, h *helper, mtu int, s settings) ([]float64, error) {
		o, err := trial(tb, h, mtu, s, l, published)
		if err != nil {
			return nil, err
		}
		if o.Seconds == 0 || o.Total == 0 {
			return nil, errors.New("nothing arrived")
		}
		gbps := o.Bytes * 8 / o.Seconds / 1e9
		if o.Total < minBytesForTimes {
			return []float64{gbps, math.NaN(), math.NaN()}, nil
		}
		gb := o.Total / 1e9
		return []float64{gbps, o.helper / gb, o.total / gb}, nil
	}
}

func takeRate(l Load, published bool) func(*testbed, *helper, int, settings) ([]float64, error) {
	return func(tb *testbed, h *helper, mtu int, s settings) ([]float64, error) {
		o, err := trial(tb, h, mtu, s, l, published)
		if err != nil {
			return nil, err
		}
		return []float64{o.Ops / o.Seconds, o.P50, o.P99}, nil
	}
}

func takeFlood(size int) func(*testbed, *helper, int, settings) ([]float64, error) {
	return func(tb *testbed, h *helper, mtu int, s settings) ([]float64, error) {
		o, err := trial(tb, h, mtu, s, Load{Kind: "udp-flood", Size: size}, false)
		if err != nil {
			return nil, err
		}
		return []float64{o.Ops / o.Seconds, o.Loss * 100}, nil
	}
}

// minBytesForTimes is the minimum number of bytes for a figure of processor time per byte. The kernel counts processor time in
// hundredths of a second, and 50 MB take some tens of ms.
const minBytesForTimes = 50e6

// source is 1 if the server behind a published port saw the client's own address, and 0 if it saw another one.
func source(tb *testbed, h *helper, mtu int, s settings) ([]float64, error) {
	s.time, s.warm = sourceTime, 0
	o, err := trial(tb, h, mtu, s, Load{Kind: "tcp-in", Workers: 1}, true)
	if err != nil {
		return nil, err
	}
	local, seen := hostOf(o.Local), hostOf(o.Seen)
	if local == "" || seen == "" {
		return nil, fmt.Errorf("addresses %q and %q", o.Local, o.Seen)
	}
	if local == seen {
		return []float64{1}, nil
	}
	return []float64{0}, nil
}

// sourceTime is the time of the stream for source, which needs only the addresses.
const sourceTime = 50 * time.Millisecond

// hostOf returns the address without the port, and IPv4-mapped addresses as IPv4.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	return a.Unmap().String()
}

func iperf(flags ...string) func(*testbed, *helper, int, settings) ([]float64, error) {
	return func(tb *testbed, h *helper, mtu int, s settings) ([]float64, error) {
		if tb.iperf == "" {
			return nil, fmt.Errorf("%w: no iperf3 in PATH", errNotHere)
		}
		argv := append([]string{tb.iperf, "-J", "-c", topo.There4.String(), "-p", fmt.Sprint(iperfPort),
			"-t", fmt.Sprintf("%.0f", max(1, s.time.Seconds()))}, flags...)
		out, err := tb.output(tb.site(h).inside, h.wrap(argv, mtu, 0), h.env, s.time+runExtraTime)
		if err != nil {
			return nil, err
		}
		var result struct {
			End struct {
				Received struct {
					BitsPerSecond float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if err := json.Unmarshal(out, &result); err != nil {
			return nil, fmt.Errorf("iperf3: %w", err)
		}
		return []float64{result.End.Received.BitsPerSecond / 1e9}, nil
	}
}

// startup is the wall time of running `true` with the helper. For no helper it is that of `unshare`, which creates the same namespaces
// and nothing else.
func startup(tb *testbed, h *helper, mtu int, _ settings) ([]float64, error) {
	const starts = 5 // the median is the result; one start takes some tens of ms
	argv := h.wrap([]string{"/bin/true"}, mtu, 0)
	switch h.kind {
	case kindKernel:
		return nil, fmt.Errorf("%w: its network exists before the start", errNotHere)
	case kindNone:
		if tb.unshare == "" {
			return nil, fmt.Errorf("%w: no unshare in PATH", errNotHere)
		}
		argv = []string{tb.unshare, "-Urn", "/bin/true"}
	}
	var took []float64
	for range starts {
		begin := time.Now()
		if _, err := tb.output(tb.site(h).inside, argv, h.env, runExtraTime); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(begin))/float64(time.Millisecond))
	}
	return []float64{summarise(took).Median}, nil
}

// settle is how long the helper may take to release memory that only the start needed.
const settle = 500 * time.Millisecond

// memory is the memory of all processes of the helper, with an idle command and with one that holds connections.
func memory(tb *testbed, h *helper, mtu int, s settings) ([]float64, error) {
	if h.kind == kindNone || h.kind == kindKernel {
		return nil, fmt.Errorf("%w: there are no processes of a helper", errNotHere)
	}
	l := Load{Kind: "hold", Addr: tb.serverAt(), Workers: s.conns}
	p, err := tb.start(tb.site(h).inside, h.wrap(tb.clientLine(l), mtu, 0), h.env)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	time.Sleep(settle)
	idleRSS, err := tb.sum(p, rss)
	if err != nil {
		return nil, err
	}
	idlePSS, err := tb.sum(p, pss)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(p.stdin, "go\n"); err != nil {
		return nil, err
	}
	if _, err := p.expect("sample", runExtraTime+time.Duration(s.conns)*connectTime); err != nil {
		return nil, err
	}
	time.Sleep(settle)
	held, err := tb.sum(p, rss)
	if err != nil {
		return nil, err
	}
	return []float64{idleRSS, idlePSS, held, (held - idleRSS) * 1000 / float64(max(1, s.conns))}, nil
}

// connectTime is longer than a connect takes with the slowest helper.
const connectTime = 10 * time.Millisecond

// sum adds up what read returns, in KiB, for all processes of the helper that runs p. The result is in MB.
func (tb *testbed) sum(p *process, read func(pid int) (int, error)) (float64, error) {
	procs, err := tb.helperProcesses(p.Process.Pid)
	if err != nil {
		return 0, err
	}
	var kib int
	for _, one := range procs {
		n, err := read(one.pid)
		if err != nil {
			return 0, err
		}
		kib += n
	}
	return float64(kib) * 1024 / 1e6, nil
}
