package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// pasta adds passt's pasta, which runs the command itself. Without --no-map-gw it would translate the gateway's address, which is that
// of the server, to the host.
func (f *finder) pasta(path, version string) {
	f.found = append(f.found, &helper{name: "pasta-" + version, kind: kindPeer, version: version,
		wrap: func(argv []string, mtu, publish int) []string {
			tcp := "none"
			if publish != 0 {
				tcp = strconv.Itoa(publish)
			}
			return append([]string{path, "--config-net", "--no-map-gw", "-q", "-f", "-m", strconv.Itoa(mtu),
				"-t", tcp, "-u", "none", "-T", "none", "-U", "none", "--"}, argv...)
		}})
}

// slirp adds slirp4netns, started by the subcommand slirp of this program, which creates the namespaces.
func (f *finder) slirp(path, version string) {
	f.found = append(f.found, &helper{name: "slirp4netns-" + version, kind: kindPeer, version: version,
		wrap: func(argv []string, mtu, publish int) []string {
			return append([]string{f.tb.self, "slirp", path, strconv.Itoa(mtu), strconv.Itoa(publish)}, argv...)
		}})
}

// drivers is a network driver of RootlessKit together with a port driver.
type drivers struct {
	network, port string
	// same is set if only published ports differ from another helper: the network driver is measured by itself or with another
	// port driver.
	same bool
	// since is the first major version that has them.
	since int
}

var rootlesskitDrivers = []drivers{
	{network: "slirp4netns", port: "builtin", same: true, since: 1},
	{network: "slirp4netns", port: "slirp4netns", same: true, since: 1},
	{network: "pasta", port: "implicit", same: true, since: 2},
	{network: "gvisor-tap-vsock", port: "gvisor-tap-vsock", since: 3},
	{network: "gvisor-tap-vsock", port: "builtin", same: true, since: 3},
}

// rootlesskit adds RootlessKit with each pair of drivers that its version has. It uses the newest of pastas, because it uses options
// that old versions do not have.
func (f *finder) rootlesskit(path, version string, pastas []string) {
	major, _ := strconv.Atoi(firstField(version, "."))
	env := []string{"PATH=" + f.tb.dir + ":" + os.Getenv("PATH")}
	for _, d := range rootlesskitDrivers {
		if major < d.since {
			continue
		}
		var flags []string
		if d.network == "pasta" {
			if len(pastas) == 0 {
				continue
			}
			flags = append(flags, "--pasta-binary="+pastas[len(pastas)-1])
		}
		f.found = append(f.found, &helper{
			name: fmt.Sprintf("rootlesskit-%s:%s:%s", version, d.network, d.port),
			kind: kindPeer, version: version, env: env, portsOnly: d.same,
			wrap: func(argv []string, mtu, publish int) []string {
				line := append([]string{path, "--net=" + d.network, "--mtu=" + strconv.Itoa(mtu), "--disable-host-loopback"}, flags...)
				if publish != 0 {
					line = append(line, "--port-driver="+d.port, fmt.Sprintf("-p=0.0.0.0:%d:%d/tcp", publish, publish))
				}
				return append(line, argv...)
			}})
	}
}

func firstField(s, sep string) string {
	first, _, _ := strings.Cut(s, sep)
	return first
}
