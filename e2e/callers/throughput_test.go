package callers

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The throughput of a container on netavark's bridge, and of one with the default network, beside that with the
// distribution's slirp4netns and rootlessport. It is a measurement, for ROOTLESSNET_BENCH=1 only:
//
//	nice -n -20 make test PKGS=./e2e/callers TESTFLAGS='-count=1 -v -run Throughput' ROOTLESSNET_BENCH=1
const (
	benchRuns    = 3 // of each figure, the helpers in turn; the median counts
	benchSeconds = 3
	// The least factor over the throughput of the distribution's helper in the same run. On a published port the two differ
	// less than one run from the next: the distribution's connects inside the container, and crosses no bridge.
	wantOut, wantIn, wantPublished = 4, 1.8, 1
)

// iperfMounts bring the host's iperf3 into a container.
var iperfMounts = []string{"-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro"}

// bridged is one Podman with a server in a container on a bridge.
type bridged struct {
	pod
	name, port string
}

func newBridged(p pod, name, port string) bridged {
	p.Helper()
	p.podman("network", "create", "net1")
	p.podman(append(append([]string{"run", "-d", "--name", "box", "--network", "net1", "-p", port + ":5201"}, iperfMounts...), "img", "/usr/bin/iperf3", "-s")...)
	return bridged{p, name, port}
}

// iperf runs a client and returns Gb/s.
func iperf(u *user, argv ...string) float64 {
	u.Helper()
	out, err := u.try(append(argv, "-J", "-C", "reno", "-t", fmt.Sprint(benchSeconds), "-O", "1")...)
	var report struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
		Error string `json:"error"`
	}
	if jerr := json.Unmarshal([]byte(out), &report); jerr != nil || err != nil || report.Error != "" {
		u.Errorf("%v: %v, %v, %s: %.300s", argv, err, jerr, report.Error, out)
	}
	return report.End.Received.BitsPerSecond / 1e9
}

func TestPodmanThroughput(t *testing.T) {
	if os.Getenv("ROOTLESSNET_BENCH") != "1" {
		t.Skip("a measurement: ROOTLESSNET_BENCH=1 takes it")
	}
	need(t, "iperf3", "slirp4netns", "/usr/lib/podman/netavark", "/usr/lib/podman/rootlessport")
	theirs, err := exec.LookPath("slirp4netns")
	if err != nil {
		t.Fatal(err)
	}
	ours := newBridged(newPodman(t), "ours", "18080")
	u := newUser(t)
	both := []bridged{ours, newBridged(newPodmanWith(u, theirs, filepath.Join(u.home, "none")), "theirs", "18090")}
	t.Cleanup(func() { // before each looks whether its helper is gone: they have one name
		for _, b := range both {
			_, _ = b.try("podman", "--storage-driver", "vfs", "rm", "-af", "-t", "0")
		}
	})
	const port = "15201"
	server := exec.Command("iperf3", "-s", "-p", port)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	time.Sleep(time.Second)

	measurements := []struct {
		name string
		want float64
		take func(b bridged) float64
	}{
		{"out of the container", wantOut, func(b bridged) float64 { return b.inside("-c", host4, "-p", port) }},
		{"into the container", wantIn, func(b bridged) float64 { return b.inside("-c", host4, "-p", port, "-R") }},
		{"default network, out", wantOut, func(b bridged) float64 { return b.alone("-c", host4, "-p", port) }},
		{"default network, in", wantIn, func(b bridged) float64 { return b.alone("-c", host4, "-p", port, "-R") }},
		{"published port, in", wantPublished, func(b bridged) float64 { return iperf(b.user, "iperf3", "-c", host4, "-p", b.port) }},
		{"published port, out", wantPublished, func(b bridged) float64 { return iperf(b.user, "iperf3", "-c", host4, "-p", b.port, "-R") }},
	}
	for _, m := range measurements {
		figures := map[string][]float64{}
		for range benchRuns {
			for _, b := range both {
				figures[b.name] = append(figures[b.name], m.take(b))
			}
		}
		for _, list := range figures {
			slices.Sort(list)
		}
		a, b := figures["ours"], figures["theirs"]
		ratio := a[benchRuns/2] / b[benchRuns/2]
		t.Logf("%-20s %5.2f Gb/s (%.2f); theirs %5.2f (%.2f); x %.2f", m.name, a[benchRuns/2], a, b[benchRuns/2], b, ratio)
		if ratio < m.want {
			t.Errorf("%s: %.2f times, want %.1f", m.name, ratio, m.want)
		}
	}
}

// alone runs a client in a container with the default network, and a helper of its own.
func (b bridged) alone(args ...string) float64 {
	b.Helper()
	argv := append(strings.Fields("podman --storage-driver vfs run --rm"), iperfMounts...)
	return iperf(b.user, append(append(argv, "img", "/usr/bin/iperf3"), args...)...)
}

// inside runs a client in the container.
func (b bridged) inside(args ...string) float64 {
	b.Helper()
	return iperf(b.user, append(strings.Fields("podman --storage-driver vfs exec box /usr/bin/iperf3"), args...)...)
}
