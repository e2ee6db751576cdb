package callers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
)

// probeWord as the first argument makes this program a client or a server, inside and outside of containers.
const probeWord = "probe"

// probe is that program.
//
//	serve PORT        answers over HTTP and UDP who is asking
//	marked PORT       answers over HTTP, with packets that have a mark
//	get URL...        prints what is answered, or why not
//	ask ADDRESS...    prints what is answered over UDP, or why not
//	hold ADDRESS...   keeps connections, and says after each line that comes in whether they still carry something
//	bulk URL          moves a lot in both directions, and says how much came
//	keep ADDR N       keeps connections, and says from time to time how many of them answer
//	flush             removes all rules of nf_tables
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
	case len(args) == 2 && args[0] == "marked":
		mark := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, 7) })
		}}
		l, err := mark.Listen(context.Background(), "tcp", ":"+args[1])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		_ = http.Serve(l, http.HandlerFunc(whoAsks))
	case len(args) > 1 && args[0] == "get":
		for _, url := range args[1:] {
			fmt.Println(get(url))
		}
	case len(args) > 1 && args[0] == "ask":
		for _, addr := range args[1:] {
			fmt.Println(ask(addr))
		}
	case len(args) > 1 && args[0] == "hold":
		return hold(args[1:])
	case len(args) == 2 && args[0] == "bulk":
		fmt.Println(bulk(args[1]))
	case len(args) == 3 && args[0] == "keep":
		return keep(args[1], args[2])
	case len(args) == 1 && args[0] == "flush":
		c, err := nftables.New()
		if err == nil {
			c.FlushRuleset()
			err = c.Flush()
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
	default:
		fmt.Println("probe: what?", args)
		return 2
	}
	return 0
}

// hold keeps one connection to each server, and uses it whenever it is told to.
func hold(addrs []string) int {
	type held struct {
		net.Conn
		*bufio.Reader
	}
	conns := map[string]held{}
	for _, a := range addrs {
		c, err := net.DialTimeout("tcp", a, 3*time.Second)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer c.Close()
		conns[a] = held{c, bufio.NewReader(c)}
	}
	fmt.Println("held")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for _, a := range addrs {
			c := conns[a]
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			fmt.Fprintf(c.Conn, "GET / HTTP/1.1\r\nHost: probe\r\n\r\n")
			resp, err := http.ReadResponse(c.Reader, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			fmt.Printf("%s: %v\n", a, err)
		}
		fmt.Println("looked")
	}
	return 0
}

// keep asks whoAsks again and again, on connections that are kept.
func keep(addr, number string) int {
	n, err := strconv.Atoi(number)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		if conns[i], err = net.DialTimeout("tcp", addr, 5*time.Second); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	for round := 1; ; round++ {
		answered := 0
		for _, c := range conns {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", addr)
			if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				answered++
			}
		}
		fmt.Printf("round %d: %d answered\n", round, answered)
		time.Sleep(200 * time.Millisecond)
	}
}

// bulkSize is what the path /bulk answers with, and takes.
const bulkSize = 16 << 20

func whoAsks(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/bulk" {
		fmt.Fprint(w, "you are "+r.RemoteAddr)
		return
	}
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil || n != bulkSize {
		http.Error(w, fmt.Sprintf("%d bytes came: %v", n, err), http.StatusBadRequest)
		return
	}
	_, _ = w.Write(make([]byte, bulkSize))
}

// bulk sends and receives a lot by two connections at a time.
func bulk(url string) string {
	results := make(chan string, 2)
	for range cap(results) {
		go func() {
			client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Post(url, "application/octet-stream", bytes.NewReader(make([]byte, bulkSize)))
			if err != nil {
				results <- err.Error()
				return
			}
			defer resp.Body.Close()
			n, err := io.Copy(io.Discard, resp.Body)
			results <- fmt.Sprint(n, " bytes, ", err)
		}()
	}
	return "bulk " + <-results + "; " + <-results
}

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
	if errors.Is(err, syscall.EPIPE) { // the client's other goroutine, which reads, was told of the reset
		err = fmt.Errorf("%w, after %w", err, syscall.ECONNRESET)
	}
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
