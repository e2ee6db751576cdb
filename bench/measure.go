package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"rootlessnet/internal/nettest/topo"
)

// metric is one thing to measure. take returns a value in unit.
type metric struct {
	name, unit string
	perMTU     bool // once for every MTU; otherwise at the default one
	lowWins    bool
	take       func(g *ground, h Helper, mtu int) (float64, error)
}

func metrics(conns int) []metric {
	return []metric{
		{name: "tcp-out", unit: "Gb/s", perMTU: true, take: clientGbps("tcp-out")},
		{name: "tcp-in", unit: "Gb/s", perMTU: true, take: clientGbps("tcp-in")},
		{name: "tcp-published", unit: "Gb/s", perMTU: true, take: published},
		{name: "iperf3-out", unit: "Gb/s", perMTU: true, take: iperf()},
		{name: "iperf3-in", unit: "Gb/s", perMTU: true, take: iperf("-R")},
		{name: "tcp-rr", unit: "1/s", take: clientRate("tcp-rr")},
		{name: "tcp-crr", unit: "1/s", take: clientRate("tcp-crr")},
		{name: "udp-rr", unit: "1/s", take: clientRate("udp-rr")},
		{name: "startup", unit: "ms", lowWins: true, take: startup},
		{name: "idle-rss", unit: "MB", lowWins: true, take: idle(rss)},
		{name: "idle-pss", unit: "MB", lowWins: true, take: idle(pss)},
		{name: fmt.Sprintf("conns-rss-%d", conns), unit: "MB", lowWins: true, take: held(conns)},
	}
}

// errNotHere is returned by a measurement that makes no sense for a helper or cannot be taken on this machine.
var errNotHere = errors.New("not measured")

func server(p int) string { return netip.AddrPortFrom(topo.There4, uint16(p)).String() }

func clientGbps(kind string) func(*ground, Helper, int) (float64, error) {
	return func(g *ground, h Helper, mtu int) (float64, error) {
		s, err := g.sample(g.Here, h.Wrap([]string{g.self, "client", kind, server(port), g.time.String()}, mtu, 0))
		return gbps(s), err
	}
}

func clientRate(kind string) func(*ground, Helper, int) (float64, error) {
	return func(g *ground, h Helper, mtu int) (float64, error) {
		s, err := g.sample(g.Here, h.Wrap([]string{g.self, "client", kind, server(port), g.time.String()}, mtu, 0))
		if err != nil {
			return 0, err
		}
		return float64(s.Ops) / s.Seconds, nil
	}
}

func gbps(s Sample) float64 {
	if s.Seconds == 0 {
		return 0
	}
	return float64(s.Bytes) * 8 / s.Seconds / 1e9
}

// published sends one stream from "there" to a server behind the helper.
func published(g *ground, h Helper, mtu int) (float64, error) {
	srv, err := g.start(g.Here, h.Wrap([]string{g.self, "serve", fmt.Sprintf("[::]:%d", publicPort)}, mtu, publicPort))
	if err != nil {
		return 0, err
	}
	defer srv.stop()
	at := netip.AddrPortFrom(topo.Here4, publicPort).String()
	s, err := g.sample(g.There, []string{g.self, "client", "tcp-out", at, g.time.String()})
	return gbps(s), err
}

func iperf(flags ...string) func(*ground, Helper, int) (float64, error) {
	return func(g *ground, h Helper, mtu int) (float64, error) {
		if g.iperf == "" {
			return 0, fmt.Errorf("%w: no iperf3 in PATH", errNotHere)
		}
		argv := append([]string{g.iperf, "-J", "-c", topo.There4.String(), "-p", fmt.Sprint(iperfPort),
			"-t", fmt.Sprintf("%.0f", max(1, g.time.Seconds()))}, flags...)
		out, err := g.output(g.Here, h.Wrap(argv, mtu, 0), g.time+runPatience)
		if err != nil {
			return 0, err
		}
		var result struct {
			End struct {
				Received struct {
					BitsPerSecond float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if err := json.Unmarshal(out, &result); err != nil {
			return 0, fmt.Errorf("iperf3: %w", err)
		}
		return result.End.Received.BitsPerSecond / 1e9, nil
	}
}

// startup is the wall time of a start and end of the helper around `true`. For no helper it is that of unshare, which
// makes the same namespaces and nothing else.
func startup(g *ground, h Helper, mtu int) (float64, error) {
	const starts = 11 // of which the median counts; one takes some tens of ms
	argv := h.Wrap([]string{"/bin/true"}, mtu, 0)
	if h.Name() == (none{}).Name() {
		if g.unshare == "" {
			return 0, fmt.Errorf("%w: no unshare in PATH", errNotHere)
		}
		argv = []string{g.unshare, "-Urn", "/bin/true"}
	}
	var took []float64
	for range starts {
		begin := time.Now()
		if _, err := g.output(g.Here, argv, runPatience); err != nil {
			return 0, err
		}
		took = append(took, float64(time.Since(begin))/float64(time.Millisecond))
	}
	return summarise(took).Median, nil
}

func idle(read func(pid int) (int, error)) func(*ground, Helper, int) (float64, error) {
	return func(g *ground, h Helper, mtu int) (float64, error) {
		return g.memory(h, mtu, 0, read)
	}
}

func held(conns int) func(*ground, Helper, int) (float64, error) {
	return func(g *ground, h Helper, mtu int) (float64, error) {
		return g.memory(h, mtu, conns, rss)
	}
}

// memory is what read says of all the helper's processes together, in MB, while its command holds conns connections.
func (g *ground) memory(h Helper, mtu, conns int, read func(pid int) (int, error)) (float64, error) {
	if h.Name() == (none{}).Name() {
		return 0, fmt.Errorf("%w: no helper has no processes", errNotHere)
	}
	p, err := g.start(g.Here, h.Wrap([]string{g.self, "hold", server(port), fmt.Sprint(conns)}, mtu, 0))
	if err != nil {
		return 0, err
	}
	defer p.stop()
	time.Sleep(time.Second) // what start-up left behind is given back by then, or it stays
	pids, err := helperProcesses(p.Process.Pid)
	if err != nil {
		return 0, err
	}
	var kib int
	for _, pid := range pids {
		n, err := read(pid)
		if err != nil {
			return 0, err
		}
		kib += n
	}
	return float64(kib) / 1000, nil
}
