package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// mapping is a range of ports of the host that is forwarded to a range of ports inside.
type mapping struct {
	proto     string // "tcp" or "udp"
	host      uint16 // the first port of the host
	inside    uint16 // the first port inside
	following uint16 // how many more ports follow each
}

// publisher is a running forwarder, with its published ports.
type publisher struct {
	*forwarder
	*sandbox // the agent on the forwarder's inside
	// remove closes one published port while the forwarder runs. It is nil for a forwarder that takes its ports when it
	// starts and keeps them until it ends.
	remove func(mapping)
	end    func() // ends the forwarder
}

// forwarder is one way to publish ports of the host, and what is expected of it where forwarders differ by decision.
type forwarder struct {
	name           string
	link, datapath string // flags of the programs that have them; "" for the default
	open           func(l *lab, ports []mapping) *publisher

	// seenTCP and seenUDP are the addresses that a server inside sees for an IPv4 and for an IPv6 client of "there"; the
	// zero Addr means the client's own.
	seenTCP, seenUDP [2]netip.Addr
	// seenLoopback is the address that a server inside sees for a TCP client on the host's loopback.
	seenLoopback netip.Addr
	// onlyIPv4 is set if the forwarder listens on IPv4 addresses only.
	onlyIPv4 bool
}

// seen is the address that the server sees for a client: the client's own, unless the table has another.
func seen(expected [2]netip.Addr, client netip.Addr) netip.Addr {
	addr := expected[0]
	if client.Is6() {
		addr = expected[1]
	}
	if addr.IsValid() {
		return addr
	}
	return client
}

// The namespace that rootlessport forwards to when no helper of this project connects it: addresses on a bridge, as those
// of a container, and the gateway, which is the source address of clients that the container could not answer.
var (
	alone        = hosts{netip.MustParsePrefix("10.9.9.2/24"), netip.MustParsePrefix("fd99::2/64")}
	aloneGateway = []netip.Addr{netip.MustParseAddr("10.9.9.1"), netip.MustParseAddr("fd99::1")}
)

// The addresses that slirp4netns gives a namespace.
var (
	slirpGateway = netip.MustParseAddr("10.0.2.2")
	slirpGuest   = netip.MustParseAddr("10.0.2.100")
)

// forwarders is the table of all forwarders: each datapath, each program, and each interface of a program.
func forwarders(t *testing.T) (list []*forwarder) {
	t.Helper()
	for _, link := range kinds(t) {
		for _, path := range datapaths {
			list = append(list, &forwarder{name: "rootless-run/" + link + "/" + path, link: link, datapath: path, open: openRun, seenLoopback: gateway4})
		}
	}
	list = append(list, &forwarder{name: "rootless-run", open: openRun, seenLoopback: gateway4})
	for _, path := range datapaths {
		list = append(list, &forwarder{name: "rootless-run with passed sockets/" + path, link: "auto", datapath: path, open: openPassed, seenLoopback: gateway4})
	}
	for _, path := range datapaths {
		list = append(list, &forwarder{name: "attach/" + path, link: "auto", datapath: path, open: openAttach, seenLoopback: gateway4})
	}
	return append(list,
		&forwarder{name: "attach", open: openAttach, seenLoopback: gateway4},
		&forwarder{name: "RootlessKit's API", open: openREST, seenLoopback: gateway4},
		&forwarder{name: "slirp4netns", open: openSlirp, seenLoopback: slirpGateway,
			onlyIPv4: true}, // host_addr of its API is an IPv4 address
		&forwarder{name: "pasta", open: openPasta, seenLoopback: topo.There4},
		&forwarder{name: "rootlessport beside slirp4netns", open: openRootlessportBeside, seenLoopback: slirpGateway,
			// Podman names one address of the container, of IPv4: clients of IPv6 are shown as its gateway.
			seenTCP: [2]netip.Addr{1: slirpGateway}, seenUDP: [2]netip.Addr{1: slirpGateway}},
		&forwarder{name: "rootlessport behind slirp4netns", open: openRootlessportBehind, seenLoopback: bridge.v4.Addr(),
			// As above. TCP goes directly into the container's namespace, UDP by slirp4netns.
			seenTCP: [2]netip.Addr{1: bridge.v4.Addr()}, seenUDP: [2]netip.Addr{1: slirpGateway}},
		&forwarder{name: "rootlessport alone", open: openRootlessportAlone, seenLoopback: aloneGateway[0],
			// As above.
			seenTCP: [2]netip.Addr{1: aloneGateway[0]},
			// Datagrams are relayed by a socket inside.
			seenUDP: [2]netip.Addr{alone.v4.Addr(), alone.v4.Addr()}},
	)
}

// publishFlags are the ports in the grammar of -p.
func publishFlags(ports []mapping) (flags []string) {
	for _, m := range ports {
		flags = append(flags, "-p", portFlag(m))
	}
	return flags
}

func portFlag(m mapping) string {
	if m.following == 0 {
		return fmt.Sprintf("%d:%d/%s", m.host, m.inside, m.proto)
	}
	return fmt.Sprintf("%d-%d:%d-%d/%s", m.host, m.host+m.following, m.inside, m.inside+m.following, m.proto)
}

func openRun(l *lab, ports []mapping) *publisher {
	l.Helper()
	s := l.start(publishFlags(ports)...)
	return &publisher{sandbox: s, remove: func(m mapping) { l.manage("port", "rm", s.name, portFlag(m)) }, end: s.stop}
}

// openPassed passes the sockets as systemd does: one on [::] for both address families of each port, beside a unix socket. The
// supervisor has them until it ends.
func openPassed(l *lab, ports []mapping) *publisher {
	l.Helper()
	args := append(append(l.flags[:len(l.flags):len(l.flags)], publishFlags(ports)...), "--")
	cmd := l.command("rootless-run", append(args, agentProgram()...)...)
	unixSocket, err := net.Listen("unix", filepath.Join(l.runtime, "passed"))
	if err != nil {
		l.Fatal(err)
	}
	defer unixSocket.Close()
	files := []*os.File{fileOf(l, unixSocket)}
	for _, m := range ports {
		for i := range m.following + 1 {
			var s any
			addr := at(netip.IPv6Unspecified(), m.host+i).String()
			if m.proto == "tcp" {
				s, err = l.Here.Listen("tcp", addr)
			} else {
				s, err = l.Here.ListenPacket("udp", addr)
			}
			if err != nil {
				l.Fatal(err)
			}
			files = append(files, fileOf(l, s))
			s.(io.Closer).Close()
		}
	}
	env := append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(files)))
	cmd = l.Here.Command(append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, cmd.Args...)...)
	cmd.Env, cmd.ExtraFiles = env, files
	s := l.agent("passed", cmd)
	for _, f := range files {
		f.Close()
	}
	return &publisher{sandbox: s, end: s.stop}
}

// fileOf is a copy of a socket.
func fileOf(l *lab, socket any) *os.File {
	l.Helper()
	f, err := socket.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		l.Fatal(err)
	}
	return f
}

func openAttach(l *lab, ports []mapping) *publisher {
	l.Helper()
	n := l.holder()
	const name = "published"
	a := l.attach(append(append([]string{"--configure", "--name", name}, publishFlags(ports)...), strconv.Itoa(n.pid))...)
	return &publisher{sandbox: n.sandbox, remove: func(m mapping) { l.manage("port", "rm", name, portFlag(m)) }, end: func() { a.exit.Close() }}
}

// portSpec is a port of RootlessKit's API.
type portSpec struct {
	Proto      string `json:"proto"`
	ParentIP   string `json:"parentIP,omitempty"`
	ParentPort uint16 `json:"parentPort"`
	ChildIP    string `json:"childIP,omitempty"`
	ChildPort  uint16 `json:"childPort"`
}

// restPorts is a client of RootlessKit's API.
type restPorts struct {
	*lab
	socket string
}

func (p restPorts) ask(method, path string, body any, want int) (id int) {
	p.Helper()
	client := http.Client{Timeout: opPatience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", p.socket)
	}}}
	text, err := json.Marshal(body)
	if err != nil {
		p.Fatal(err)
	}
	req, err := http.NewRequest(method, "http://rootlesskit/v1/ports"+path, strings.NewReader(string(text)))
	if err != nil {
		p.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	reply, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != want {
		p.Fatalf("%s %s %s: %s %s", method, path, text, resp.Status, reply)
	}
	var added struct{ ID int }
	_ = json.Unmarshal(reply, &added) // a DELETE has no body
	return added.ID
}

func (p restPorts) add(spec portSpec) (id int) {
	p.Helper()
	return p.ask(http.MethodPost, "", spec, http.StatusCreated)
}

func (p restPorts) remove(id int) {
	p.Helper()
	p.ask(http.MethodDelete, "/"+strconv.Itoa(id), nil, http.StatusOK)
}

func openREST(l *lab, ports []mapping) *publisher {
	l.Helper()
	n := l.holder()
	socket := filepath.Join(l.runtime, "api.sock")
	a := l.attach("--configure", "--api-socket", socket, strconv.Itoa(n.pid))
	api, ids := restPorts{l, socket}, map[mapping]int{}
	for _, m := range ports {
		for i := range m.following + 1 {
			ids[m] = api.add(portSpec{Proto: m.proto, ParentPort: m.host + i, ChildPort: m.inside + i})
		}
	}
	return &publisher{sandbox: n.sandbox, remove: func(m mapping) { api.remove(ids[m]) }, end: func() { a.exit.Close() }}
}

func openSlirp(l *lab, ports []mapping) *publisher {
	l.Helper()
	n := l.holder()
	socket := filepath.Join(l.runtime, "slirp.sock")
	a := l.startHelper(l.command("slirp4netns", "-c", "-6", "-r", "3", "-e", "4", "-a", socket, strconv.Itoa(n.pid), "tap0"))
	ids := map[mapping]int{}
	for _, m := range ports {
		for i := range m.following + 1 {
			ids[m] = l.slirpAPI(socket, "add_hostfwd", map[string]any{"proto": m.proto, "host_port": m.host + i, "guest_port": m.inside + i})
		}
	}
	return &publisher{sandbox: n.sandbox, end: func() { a.exit.Close() },
		remove: func(m mapping) { l.slirpAPI(socket, "remove_hostfwd", map[string]any{"id": ids[m]}) }}
}

// slirpAPI sends one request to the socket of slirp4netns, and returns the id of the forward in the reply.
func (l *lab) slirpAPI(socket, execute string, arguments map[string]any) (id int) {
	l.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(opPatience))
	if err := json.NewEncoder(c).Encode(map[string]any{"execute": execute, "arguments": arguments}); err != nil {
		l.Fatal(err)
	}
	_ = c.(*net.UnixConn).CloseWrite()
	text, err := io.ReadAll(c)
	var reply struct {
		Return *struct{ ID int }
	}
	if err != nil || json.Unmarshal(text, &reply) != nil || reply.Return == nil {
		l.Fatalf("%s %v: %s, %v", execute, arguments, text, err)
	}
	return reply.Return.ID
}

func openPasta(l *lab, ports []mapping) *publisher { return openPastaWith(l, ports) }

// openPastaWith is openPasta with further flags.
func openPastaWith(l *lab, ports []mapping, flags ...string) *publisher {
	l.Helper()
	n := l.holder()
	pidFile := filepath.Join(l.runtime, "pasta.pid")
	args := append([]string{"--config-net", "-T", "none", "-U", "none", "-P", pidFile}, flags...)
	for _, m := range ports {
		spec := fmt.Sprintf("%d-%d:%d-%d", m.host, m.host+m.following, m.inside, m.inside+m.following)
		args = append(args, map[string]string{"tcp": "-t", "udp": "-u"}[m.proto], spec)
	}
	if r := l.finish(l.command("pasta", append(args, strconv.Itoa(n.pid))...)); r.code != 0 {
		l.Fatalf("pasta: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		l.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		l.Fatal(err)
	}
	end := func() { _ = syscall.Kill(pid, syscall.SIGTERM) }
	l.Cleanup(end)
	return &publisher{sandbox: n.sandbox, end: end}
}

// rootlessport starts the port helper as Podman does; child is the address of the server.
func (n *namespace) rootlessport(child netip.Addr, ports []mapping) *attached {
	n.Helper()
	var mappings []map[string]any
	for _, m := range ports {
		mappings = append(mappings, map[string]any{"host_port": m.host, "container_port": m.inside, "range": m.following + 1, "protocol": m.proto})
	}
	config, err := json.Marshal(map[string]any{"NetNSPath": n.file("net"), "ChildIP": child, "ReadyFD": 3, "ExitFD": 4, "Mappings": mappings})
	if err != nil {
		n.Fatal(err)
	}
	cmd := n.asRoot(n.command("rootlessport"))
	cmd.Stdin = strings.NewReader(string(config))
	return n.startHelper(cmd)
}

// asRoot has a program run as root of the namespace's user namespace, in the network namespace "here", as Podman starts
// its helpers.
func (n *namespace) asRoot(program *topo.Cmd) *topo.Cmd {
	cmd := n.Here.Command(append([]string{"nsenter", "--target", strconv.Itoa(n.pid), "--user", "--preserve-credentials", "--"}, program.Args...)...)
	cmd.Env = program.Env
	return cmd
}

func openRootlessportBeside(l *lab, ports []mapping) *publisher {
	l.Helper()
	n := l.holder()
	l.startHelper(n.asRoot(l.command("slirp4netns", "-c", "-6", "-r", "3", "-e", "4", "--netns-type=path", n.file("net"), "tap0")))
	a := n.rootlessport(slirpGuest, ports)
	return &publisher{sandbox: n.sandbox, end: func() { a.exit.Close() }}
}

// openRootlessportBehind has a container on a bridge in the namespace that slirp4netns connects, as Podman's networks are made. The
// paths of the namespaces are not those that Podman uses by default.
func openRootlessportBehind(l *lab, ports []mapping) *publisher {
	l.Helper()
	e := &engine{namespace: l.holder()}
	l.startHelper(e.asRoot(l.command("slirp4netns", "-c", "-6", "-r", "3", "-e", "4", "--netns-type=path", e.file("net"), "tap0")))
	do(e, guest.AddBridge{Name: "br0", Prefixes: bridge.prefixes()})
	e.loadRules(guest.LoadMasquerade{Open: true})
	s := e.container("container", box1)
	n := &namespace{s, s.cmd.Process.Pid}
	a := n.rootlessport(box1.v4.Addr(), ports)
	return &publisher{sandbox: s, end: func() { a.exit.Close() }}
}

func openRootlessportAlone(l *lab, ports []mapping) *publisher {
	l.Helper()
	n := l.holder()
	do(n, guest.AddBridge{Name: "d0", Prefixes: alone.prefixes()})
	do(n, guest.Configure{Interface: "d0", Gateways: aloneGateway})
	a := n.rootlessport(alone.v4.Addr(), ports)
	return &publisher{sandbox: n.sandbox, end: func() { a.exit.Close() }}
}
