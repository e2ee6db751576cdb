package rootlessnet

import (
	"bufio"
	"context"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"rootlessnet/api"
)

const (
	// followInterval is how late a new listener may be published: soon enough for a person who has just started one.
	followInterval = 300 * time.Millisecond
	// followGone is for how many looks a listener must be missing before its port is closed: a server that restarts
	// keeps it.
	followGone = 4

	// States of a socket in /proc/net (include/net/tcp_states.h).
	tcpListenState = "0A"
	udpBoundState  = "07"

	// ephemeralStart: UDP sockets at or above it were most likely given their port by the kernel to ask something,
	// not to serve (net.ipv4.ip_local_port_range).
	ephemeralStart = 32768
)

// guestPort is something that listens inside.
type guestPort struct {
	proto string
	port  uint16
}

// listenFollower publishes what listens inside (PublishAll). All of it belongs to the goroutine of run.
type listenFollower struct {
	ports     *ports
	procNet   string // /proc/PID/net of a process in the namespace
	log       *slog.Logger
	onPublish func(PortMapping)

	missing map[guestPort]int // published by us; for how many looks it has not been seen
	failed  map[guestPort]bool
}

func (f *listenFollower) run(ctx context.Context) {
	f.missing, f.failed = map[guestPort]int{}, map[guestPort]bool{}
	t := time.NewTicker(followInterval)
	defer t.Stop()
	for {
		f.look()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func (f *listenFollower) look() {
	now := map[guestPort]bool{}
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		readListeners(filepath.Join(f.procNet, name), name[:3], now)
	}
	for p := range now {
		if _, ours := f.missing[p]; ours {
			f.missing[p] = 0
		} else if !f.failed[p] {
			f.publish(p)
		}
	}
	for p := range f.failed {
		if !now[p] {
			delete(f.failed, p)
		}
	}
	for p := range f.missing {
		if now[p] {
			continue
		}
		if f.missing[p]++; f.missing[p] >= followGone {
			delete(f.missing, p)
			f.ports.remove(func(b api.Port) bool { return b.Auto && b.Proto == p.proto && b.GuestPort == p.port })
		}
	}
}

// publish opens the same port on the host, or a free one.
func (f *listenFollower) publish(p guestPort) {
	for _, b := range f.ports.list() {
		if b.Proto == p.proto && b.GuestPort == p.port {
			return // by -p
		}
	}
	m := PortMapping{Proto: p.proto, HostPort: p.port, HostPortEnd: p.port, GuestPort: p.port}
	list, err := f.ports.add([]PortMapping{m}, true)
	if err != nil {
		m.HostPort, m.HostPortEnd = 0, 0
		list, err = f.ports.add([]PortMapping{m}, true)
	}
	if err != nil {
		f.failed[p] = true
		f.log.Warn("cannot publish", "port", p.port, "proto", p.proto, "err", err)
		return
	}
	f.missing[p] = 0
	m.HostPort, m.HostPortEnd = list[0].HostPort, list[0].HostPort
	if f.onPublish != nil {
		f.onPublish(m)
	}
}

// readListeners adds what a file of /proc/net shows as listening on an address other than loopback.
func readListeners(path, proto string, into map[guestPort]bool) {
	file, err := os.Open(path)
	if err != nil {
		return // IPv6 off, or the namespace is going
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		if p, ok := parseListener(sc.Text(), proto); ok {
			into[p] = true
		}
	}
}

// parseListener reads one line of /proc/net/tcp and its like: "sl local_address rem_address st …", where an address is
// in hexadecimal, each 32-bit word in the host's byte order (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
func parseListener(line, proto string) (p guestPort, ok bool) {
	words := strings.Fields(line)
	if len(words) < 4 {
		return p, false
	}
	state := tcpListenState
	if proto == "udp" {
		state = udpBoundState
	}
	host, port, found := strings.Cut(words[1], ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if !found || err != nil || words[3] != state || n == 0 {
		return p, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil {
		return p, false
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	addr, valid := netip.AddrFromSlice(raw)
	if !valid || addr.Unmap().IsLoopback() || proto == "udp" && n >= ephemeralStart {
		return p, false
	}
	return guestPort{proto, uint16(n)}, true
}
