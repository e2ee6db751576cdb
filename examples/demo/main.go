// Command demo demonstrates rootless-run and prints the result of each step: it starts a web server in a sandbox with a published
// port, sends requests from outside, for which the server prints the client's address, and shows what the sandbox can and cannot
// reach. `make demo` builds and starts it; it needs no set-up and no privileges.
//
// The outside is a second network namespace of the demo, so that it works without a network connection and sends nothing to the
// machine's network.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rootlessnet/internal/nettest/topo"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "inside" {
		inside()
		return
	}
	topo.Enter()
	if err := demo(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// inside is the command in the sandbox: a web server that answers with the client's address. For each address on standard input it
// connects there and prints the result; it ends with standard input.
func inside() {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	var addrs []string
	if list, err := net.InterfaceAddrs(); err == nil {
		for _, a := range list {
			addrs = append(addrs, a.String())
		}
	}
	fmt.Printf("uid %d, addresses %s\n", os.Getuid(), strings.Join(addrs, " "))
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello %s", r.RemoteAddr)
		}))
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		c, err := net.DialTimeout("tcp", lines.Text(), 3*time.Second)
		if err != nil {
			fmt.Println(err)
			continue
		}
		greeting, _ := io.ReadAll(c)
		c.Close()
		fmt.Printf("connected, received %q\n", greeting)
	}
}

func demo() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program := filepath.Join(os.Getenv("ROOTLESSNET_BIN"), "rootless-run")
	t, err := topo.New(topo.Options{})
	if err != nil {
		return err
	}
	defer t.Close()
	runtime, err := os.MkdirTemp("/tmp", "d")
	if err != nil {
		return err
	}
	defer os.RemoveAll(runtime)
	step("The host has the addresses %v and %v; the user is an ordinary one (uid %d, no capabilities).", topo.Here4, topo.Here6, os.Getuid())
	step("The neighbour, another host, has the addresses %v and %v.", topo.There4, topo.There6)

	greeter, err := greet(t.There, topo.There4.String()+":7000")
	if err != nil {
		return err
	}
	defer greeter.Close()
	secret, err := greet(t.Here, "127.0.0.1:7001")
	if err != nil {
		return err
	}
	defer secret.Close()

	fmt.Printf("\n$ rootless-run -p 8080:80 -- web-server\n")
	cmd := t.Here.Command(program, "-p", "8080:80", "--", self, "inside")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+runtime)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		return fmt.Errorf("the sandbox did not start: %w", err)
	}
	step("The server runs after %d ms. It reports: %s.", time.Since(begin).Milliseconds(), strings.TrimSpace(line))

	if err := fetchAll(t); err != nil {
		return err
	}
	for _, c := range []struct{ what, addr string }{
		{"the neighbour", topo.There4.String() + ":7000"},
		{"a port of the neighbour where nothing listens", topo.There4.String() + ":7002"},
		{"an address that a router reports as unreachable", topo.Unreachable4.String() + ":80"},
		{"a server on the host's loopback, by the gateway's address", "10.0.2.2:7001"},
	} {
		if _, err := fmt.Fprintln(in, c.addr); err != nil {
			return err
		}
		answer, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		step("From inside to %s (%s): %s", c.what, c.addr, strings.TrimSpace(answer))
	}
	begin = time.Now()
	in.Close()
	_, _ = io.Copy(io.Discard, lines)
	if err := cmd.Wait(); err != nil {
		return err
	}
	step("The command has ended; rootless-run has removed the sandbox after %d ms.", time.Since(begin).Milliseconds())
	return nil
}

// fetchAll requests the page on the published port from the neighbour and from the host.
func fetchAll(t *topo.Topo) error {
	asks := []struct {
		host string
		from *topo.NS
		url  string
	}{
		{"The neighbour", t.There, fmt.Sprintf("http://%v:8080/", topo.Here4)},
		{"The host", t.Here, "http://127.0.0.1:8080/"},
	}
	if t.IPv6 {
		asks = append(asks, asks[0])
		asks[2].url = fmt.Sprintf("http://[%v]:8080/", topo.Here6)
	}
	for _, a := range asks {
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
				return a.from.Dial(network, addr, 5*time.Second)
			},
		}}
		answer, err := client.Get(a.url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		client.CloseIdleConnections()
		if err != nil {
			return err
		}
		step("%s requests %s; the server answers: %s", a.host, a.url, body)
	}
	return nil
}

// greet runs a server that sends the client's address to each client.
func greet(ns *topo.NS, addr string) (net.Listener, error) {
	l, err := ns.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "hello %v", c.RemoteAddr())
			c.Close()
		}
	}()
	return l, nil
}

// step prints the result of a step.
func step(format string, args ...any) { fmt.Printf("- "+format+"\n", args...) }
