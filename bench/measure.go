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
	suffix  string // behind the metric's name
	unit    string
	lowWins bool
}

// metric is one thing to measure; take returns a value for each of its series, NaN where it cannot tell.
type metric struct {
	name     string
	series   []series
	perMTU   bool // once for every MTU; otherwise at the first one
	ports    bool // about a published port
	slow     bool // left out of a quick run
	onlyName bool // taken only when -only asks for it
	take     func(g *ground, h *helper, mtu int, s settings) ([]float64, error)
}

// outcome is a Sample with the processor seconds that were spent on it.
type outcome struct {
	Sample
	helper float64 // of the helper's processes
	total  float64 // with client and server
}

// errNotHere is returned by a measurement that makes no sense for a helper or cannot be taken on this machine.
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
		{name: "iperf3-out", series: []series{{"", "Gb/s", false}}, perMTU: true, onlyName: true, take: iperf()},
		{name: "iperf3-in", series: []series{{"", "Gb/s", false}}, perMTU: true, onlyName: true, take: iperf("-R")},
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

// trial runs one client and returns what it measured. published puts the server behind the helper, on a published port,
// and the client outside.
func trial(g *ground, h *helper, mtu int, s settings, l Load, published bool) (outcome, error) {
	l.Time, l.Warm = s.time, s.warm
	at := g.site(h)
	if !published {
		l.Addr = g.serverAt()
		c, err := g.start(at.inside, h.wrap(g.clientLine(l), mtu, 0), h.env)
		if err != nil {
			return outcome{}, err
		}
		defer c.stop()
		return g.do(c, at.server, l)
	}
	port := g.publish()
	line := []string{g.self, "serve", fmt.Sprint(port), "1"}
	if l.Kind == "http" {
		line = []string{g.self, "serve-http", fmt.Sprint(port)}
	}
	srv, err := g.start(at.inside, h.wrap(line, mtu, port), h.env)
	if err != nil {
		return outcome{}, err
	}
	defer srv.stop()
	l.Addr = netip.AddrPortFrom(topo.Here4, uint16(port)).String()
	c, err := g.start(at.There, g.clientLine(l), nil)
	if err != nil {
		return outcome{}, fmt.Errorf("%w; the server's side said: %s", err, srv.complaint())
	}
	defer c.stop()
	return g.do(c, srv, l)
}

func (g *ground) clientLine(l Load) []string {
	spec, err := json.Marshal(l)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return []string{g.self, "client", string(spec)}
}

func takeBulk(l Load, published bool) func(*ground, *helper, int, settings) ([]float64, error) {
	return func(g *ground, h *helper, mtu int, s settings) ([]float64, error) {
		o, err := trial(g, h, mtu, s, l, published)
		if err != nil {
			return nil, err
		}
		if o.Seconds == 0 || o.Total == 0 {
			return nil, errors.New("nothing arrived")
		}
		gbps := o.Bytes * 8 / o.Seconds / 1e9
		if o.Total < leastForTimes {
			return []float64{gbps, math.NaN(), math.NaN()}, nil
		}
		gb := o.Total / 1e9
		return []float64{gbps, o.helper / gb, o.total / gb}, nil
	}
}

func takeRate(l Load, published bool) func(*ground, *helper, int, settings) ([]float64, error) {
	return func(g *ground, h *helper, mtu int, s settings) ([]float64, error) {
		o, err := trial(g, h, mtu, s, l, published)
		if err != nil {
			return nil, err
		}
		return []float64{o.Ops / o.Seconds, o.P50, o.P99}, nil
	}
}

func takeFlood(size int) func(*ground, *helper, int, settings) ([]float64, error) {
	return func(g *ground, h *helper, mtu int, s settings) ([]float64, error) {
		o, err := trial(g, h, mtu, s, Load{Kind: "udp-flood", Size: size}, false)
		if err != nil {
			return nil, err
		}
		return []float64{o.Ops / o.Seconds, o.Loss * 100}, nil
	}
}

// leastForTimes is how many bytes must have been moved to tell processor time, which is counted in hundredths of a
// second, for each of them: 50 MB take some tens of ms.
const leastForTimes = 50e6

// source is 1 when the server behind a published port saw the client's own address, 0 when it saw another.
func source(g *ground, h *helper, mtu int, s settings) ([]float64, error) {
	s.time, s.warm = sourceTime, 0
	o, err := trial(g, h, mtu, s, Load{Kind: "tcp-in", Workers: 1}, true)
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

// sourceTime is how long the stream runs whose address is all that counts.
const sourceTime = 50 * time.Millisecond

// hostOf is the address without port, unmapped.
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

func iperf(flags ...string) func(*ground, *helper, int, settings) ([]float64, error) {
	return func(g *ground, h *helper, mtu int, s settings) ([]float64, error) {
		if g.iperf == "" {
			return nil, fmt.Errorf("%w: no iperf3 in PATH", errNotHere)
		}
		argv := append([]string{g.iperf, "-J", "-c", topo.There4.String(), "-p", fmt.Sprint(iperfPort),
			"-t", fmt.Sprintf("%.0f", max(1, s.time.Seconds()))}, flags...)
		out, err := g.output(g.site(h).inside, h.wrap(argv, mtu, 0), h.env, s.time+runPatience)
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

// startup is the wall time of a start and end of the helper around `true`. For no helper it is that of unshare, which
// makes the same namespaces and nothing else.
func startup(g *ground, h *helper, mtu int, _ settings) ([]float64, error) {
	const starts = 5 // of which the median counts; one takes some tens of ms
	argv := h.wrap([]string{"/bin/true"}, mtu, 0)
	switch h.kind {
	case kindKernel:
		return nil, fmt.Errorf("%w: its network is there before", errNotHere)
	case kindNone:
		if g.unshare == "" {
			return nil, fmt.Errorf("%w: no unshare in PATH", errNotHere)
		}
		argv = []string{g.unshare, "-Urn", "/bin/true"}
	}
	var took []float64
	for range starts {
		begin := time.Now()
		if _, err := g.output(g.site(h).inside, argv, h.env, runPatience); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(begin))/float64(time.Millisecond))
	}
	return []float64{summarise(took).Median}, nil
}

// settle is how long what start-up left behind may take to be given back.
const settle = 500 * time.Millisecond

// memory is that of all the helper's processes together, with an idle command and with one that holds connections.
func memory(g *ground, h *helper, mtu int, s settings) ([]float64, error) {
	if h.kind == kindNone || h.kind == kindKernel {
		return nil, fmt.Errorf("%w: no helper has no processes", errNotHere)
	}
	l := Load{Kind: "hold", Addr: g.serverAt(), Workers: s.conns}
	p, err := g.start(g.site(h).inside, h.wrap(g.clientLine(l), mtu, 0), h.env)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	time.Sleep(settle)
	idleRSS, err := g.sum(p, rss)
	if err != nil {
		return nil, err
	}
	idlePSS, err := g.sum(p, pss)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(p.stdin, "go\n"); err != nil {
		return nil, err
	}
	if _, err := p.expect("sample", runPatience+time.Duration(s.conns)*connectTime); err != nil {
		return nil, err
	}
	time.Sleep(settle)
	held, err := g.sum(p, rss)
	if err != nil {
		return nil, err
	}
	return []float64{idleRSS, idlePSS, held, (held - idleRSS) * 1000 / float64(max(1, s.conns))}, nil
}

// connectTime is more than one connect takes by the slowest helper.
const connectTime = 10 * time.Millisecond

// sum adds up what read says (in KiB) of all processes of the helper behind which p runs, in MB.
func (g *ground) sum(p *process, read func(pid int) (int, error)) (float64, error) {
	procs, err := g.helperProcesses(p.Process.Pid)
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
