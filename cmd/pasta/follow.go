package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"net/netip"

	"rootlessnet"
	"rootlessnet/internal/pasta"
)

// followInterval is how often the namespace is looked at for what listens in it.
const followInterval = time.Second

// States of a socket in /proc/net (include/net/tcp_states.h).
const (
	tcpListenState = "0A"
	udpBoundState  = "07"
)

// follower opens on the host what listens in the namespace, and closes it when that has gone.
type follower struct {
	box   *rootlessnet.Sandbox
	log   *slog.Logger
	files map[string][]string // by protocol, of /proc/PID/net
	skip  func(proto string, port uint16) bool
	open  map[followed]bool
	stop  chan struct{}
	wg    sync.WaitGroup
}

type followed struct {
	proto string
	port  uint16
}

// startFollower looks once before it returns, so that what listens already is there when we are ready.
func startFollower(o *pasta.Options, box *rootlessnet.Sandbox, log *slog.Logger) *follower {
	ephemeral := ephemeralPorts()
	dir := fmt.Sprintf("/proc/%d/net/", box.PID())
	f := &follower{box: box, log: log, files: map[string][]string{}, open: map[followed]bool{}, stop: make(chan struct{})}
	if o.TCP.Mode == pasta.PortsAuto {
		f.files["tcp"] = []string{dir + "tcp", dir + "tcp6"}
	}
	if o.UDP.Mode == pasta.PortsAuto {
		f.files["udp"] = []string{dir + "udp", dir + "udp6"}
	}
	// An ephemeral UDP port was most likely given by the kernel to ask something, not to serve.
	f.skip = func(proto string, port uint16) bool {
		return proto == "udp" && port >= ephemeral[0] && port <= ephemeral[1]
	}
	f.look()
	f.wg.Go(func() {
		t := time.NewTicker(followInterval)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				f.look()
			case <-f.stop:
				return
			}
		}
	})
	return f
}

func (f *follower) close() {
	close(f.stop)
	f.wg.Wait()
}

func (f *follower) look() {
	now := map[followed]bool{}
	for proto, files := range f.files {
		for _, name := range files {
			listening(name, proto, now)
		}
	}
	for p := range now {
		if f.open[p] || f.skip(p.proto, p.port) {
			continue
		}
		_, err := f.box.AddMappings(rootlessnet.PortMapping{Proto: p.proto, HostPort: p.port, HostPortEnd: p.port, GuestPort: p.port})
		if err != nil {
			f.log.Debug("port not forwarded", "proto", p.proto, "port", p.port, "err", err)
			continue
		}
		f.open[p] = true
	}
	for p := range f.open {
		if !now[p] {
			delete(f.open, p)
			f.box.RemovePorts(func(have rootlessnet.Port) bool {
				return have.Proto == p.proto && have.HostPort == p.port && have.GuestPort == p.port
			})
		}
	}
}

// listening adds what a file of /proc/PID/net shows as listening on an address that the interface reaches.
func listening(path, proto string, into map[followed]bool) {
	file, err := os.Open(path)
	if err != nil {
		return // IPv6 off, or the namespace is going
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		if port, ok := parseSocket(sc.Text(), proto); ok {
			into[followed{proto, port}] = true
		}
	}
}

// parseSocket reads one line: "sl local_address rem_address st …", where an address is in hexadecimal, each 32-bit word
// in the host's byte order (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
func parseSocket(line, proto string) (port uint16, ok bool) {
	words := strings.Fields(line)
	if len(words) < 4 {
		return 0, false
	}
	state := tcpListenState
	if proto == "udp" {
		state = udpBoundState
	}
	host, text, found := strings.Cut(words[1], ":")
	n, err := strconv.ParseUint(text, 16, 16)
	if !found || err != nil || n == 0 || words[3] != state {
		return 0, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil {
		return 0, false
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	a, valid := netip.AddrFromSlice(raw)
	return uint16(n), valid && !a.Unmap().IsLoopback()
}
