package callers

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// probeWord as the first argument makes this program a client or a server, inside and outside of containers.
const probeWord = "probe"

// probe is that program.
//
//	serve PORT        answers over HTTP and UDP who is asking
//	get URL...        prints what is answered, or why not
func probe(args []string) int {
	switch {
	case len(args) == 2 && args[0] == "serve":
		conn, l, err := listenEcho(args[1])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		go echo(conn)
		_ = http.Serve(l, http.HandlerFunc(whoAsks))
	case len(args) > 1 && args[0] == "get":
		for _, url := range args[1:] {
			fmt.Println(get(url))
		}
	default:
		fmt.Println("probe: what?", args)
		return 2
	}
	return 0
}

func whoAsks(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "you are "+r.RemoteAddr) }

func listenEcho(port string) (net.PacketConn, net.Listener, error) {
	conn, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		conn.Close()
	}
	return conn, l, err
}

func echo(conn net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteTo(fmt.Appendf(nil, "%s, you are %v", buf[:n], from), from)
	}
}

func get(url string) string {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return url + ": " + string(text)
}

func ask(addr string) string {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	buf := make([]byte, 2048)
	if _, err := c.Write([]byte("hello")); err != nil {
		return err.Error()
	}
	n, err := c.Read(buf)
	if err != nil {
		return err.Error()
	}
	return string(buf[:n])
}

// serveHost answers on a port of the host, on every address, until the test ends.
func serveHost(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	server := &http.Server{Handler: http.HandlerFunc(whoAsks)}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-done })
	return port
}

// self is how this program is started outside of containers.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
