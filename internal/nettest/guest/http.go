package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

const (
	// greeting comes before the client's address in the answer of ServeHTTP.
	greeting = "you are "
	// bulkPath takes and answers with bulkSize bytes.
	bulkPath, bulkSize = "/bulk", 16 << 20
)

// ServeHTTP answers HTTP requests with the client's address, and answers datagrams to the same port as EchoUDP. The result is the TCP
// listener's address.
type ServeHTTP struct {
	Port   uint16 // 0 for a free one
	Socket Socket // of the TCP listener
}

func (op ServeHTTP) run() (netip.AddrPort, error) {
	lc := op.Socket.listenConfig()
	l, err := lc.Listen(context.Background(), "tcp", listenAddress(netip.Addr{}, op.Port))
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	c, err := net.ListenPacket("udp", listenAddress(netip.Addr{}, addr.Port()))
	if err != nil {
		l.Close()
		return netip.AddrPort{}, err
	}
	go EchoUDP(c)
	go func() { _ = http.Serve(l, ServeClientAddress) }()
	return addr, nil
}

// ServeClientAddress is the handler of ServeHTTP.
var ServeClientAddress = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != bulkPath {
		fmt.Fprint(w, greeting+r.RemoteAddr)
		return
	}
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil || n != bulkSize {
		http.Error(w, fmt.Sprintf("%d bytes came: %v", n, err), http.StatusBadRequest)
		return
	}
	_, _ = w.Write(make([]byte, bulkSize))
})

// httpClient opens a connection for each request.
func httpClient(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
}

// GetHTTP sends a request to a ServeHTTP server.
type GetHTTP struct{ URL string }

// HTTPAnswer is what it answered.
type HTTPAnswer struct {
	Outcome Outcome
	Client  netip.AddrPort // the client as the server sees it
}

func (op GetHTTP) run() (HTTPAnswer, error) { return op.Get(), nil }

// Get sends the request from this process.
func (op GetHTTP) Get() HTTPAnswer {
	resp, err := httpClient(patience).Get(op.URL)
	if errors.Is(err, syscall.EPIPE) { // the client's other goroutine, which reads, got the reset
		return HTTPAnswer{Outcome: Reset}
	}
	if err != nil {
		return HTTPAnswer{Outcome: OutcomeOf(err)}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return HTTPAnswer{Outcome: OutcomeOf(err)}
	}
	client, err := netip.ParseAddrPort(strings.TrimPrefix(string(text), greeting))
	return HTTPAnswer{OutcomeOf(err), client}
}

// MoveBulk sends and receives much data by two connections at once. OK is set if all of it arrived.
type MoveBulk struct{ Server Target }

func (op MoveBulk) run() (Outcome, error) { return op.Move(), nil }

// Move does it from this process.
func (op MoveBulk) Move() Outcome {
	results := make(chan error, 2)
	for range cap(results) {
		go func() { results <- op.once() }()
	}
	return OutcomeOf(errors.Join(<-results, <-results))
}

func (op MoveBulk) once() error {
	url := "http://" + op.Server.String() + bulkPath
	resp, err := httpClient(20*time.Second).Post(url, "application/octet-stream", bytes.NewReader(make([]byte, bulkSize)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if n != bulkSize || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s, with %d bytes of %d", resp.Status, n, bulkSize)
	}
	return nil
}
