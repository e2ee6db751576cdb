package udp

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

const benchServer = "FORWARDER_BENCH_SERVER"

// init is the process of echoServer.
func init() {
	if os.Getenv(benchServer) == "" {
		return
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	fmt.Println(c.LocalAddr())
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			panic(err)
		}
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

// echoServer starts a process that answers every datagram, and ends with the benchmark. It is a process of its own
// because goroutines of one process wake each other without the cost of waking a thread, which every real peer has.
func echoServer(b *testing.B) netip.AddrPort {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), benchServer+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return forwardlab.AP(strings.TrimSpace(line))
}

// BenchmarkRoundTripDirect is what BenchmarkRoundTrip is compared with: no helper between the client and the server.
func BenchmarkRoundTripDirect(b *testing.B) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(echoServer(b)))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 64)
	for b.Loop() {
		if _, err := c.Write(buf[:1]); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	addr := echoServer(b)
	w := newWorld(b, nil)
	w.g.UDP = make(chan stack.Datagram)
	d := stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: addr}, Payload: []byte("x"), TTL: 64}
	for b.Loop() {
		w.HandleUDP(&d)
		<-w.g.UDP
	}
}

func BenchmarkOutbound(b *testing.B) {
	h := forwardlab.ListenUDP(b, "127.0.0.1:0")
	w := newWorld(b, nil)
	d := stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: make([]byte, 1200), TTL: 64}
	b.SetBytes(1200)
	b.ReportAllocs()
	for b.Loop() {
		w.HandleUDP(&d)
	}
}

// BenchmarkIdleMappings reports the memory of a mapping that has nothing to do; run it with -benchtime 1x, a second
// round finds memory of the first. On Linux 6.18 it was 1.4 KB, where a bare goroutine that waits on a net.UDPConn,
// without any table, takes 3.7 KB.
func BenchmarkIdleMappings(b *testing.B) {
	const mappings = 4000
	h := forwardlab.ListenUDP(b, "127.0.0.1:0")
	for b.Loop() {
		w := newWorld(b, func(c *worldConfig) { c.maxSockets = mappings })
		before := rss(b)
		for i := range mappings {
			w.send(netip.AddrPortFrom(forwardlab.Guest4.Addr(), uint16(1024+i)), h.At, "x")
		}
		if n := w.Stats().Sockets; n != mappings {
			b.Fatalf("%d mappings", n)
		}
		b.ReportMetric(float64(rss(b)-before)/mappings, "B/mapping")
		_ = w.Close()
	}
}

func rss(b *testing.B) int {
	runtime.GC()
	s, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(s))[1])
	if err != nil {
		b.Fatal(err)
	}
	return n * os.Getpagesize()
}
