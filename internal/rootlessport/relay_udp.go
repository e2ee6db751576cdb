package rootlessport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// udpIdle is the time without datagrams after which a flow ends. It is that of connection tracking for flows with answers
	// (nf_conntrack_udp_timeout_stream).
	udpIdle = 120 * time.Second
	// maxFlows is the maximum number of flows, and so of sockets, of one port: any remote host can cause them to be opened. Datagrams
	// of further clients are dropped.
	maxFlows = 1024
	// maxDatagram is the largest payload of UDP over IPv4 or IPv6.
	maxDatagram = 65535
)

// udpClient identifies a client. It includes the host's address to which the client sent: the answer must come from there.
type udpClient struct {
	addr  netip.AddrPort
	local netip.Addr // the zero value: not known
}

// udpFlows holds a socket inside for each client of one port.
type udpFlows struct {
	r    *relay
	out  *net.UDPConn
	port Port

	mu    sync.Mutex
	conns map[udpClient]net.Conn // guarded by mu
}

func (r *relay) serveUDP(c *net.UDPConn, p Port) {
	f := &udpFlows{r: r, out: c, port: p, conns: map[udpClient]net.Conn{}}
	requestDestinations(c)
	buf, oob := make([]byte, maxDatagram), make([]byte, 128)
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that one answer caused
		}
		client := udpClient{from, destination(oob[:oobn])}
		conn, err := f.flow(client)
		if err != nil {
			r.log.Debug("datagram dropped", "client", from, "err", err)
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = conn.Write(buf[:n]) // an error means that the server's port is closed; the client then gets no answer
	}
}

var errManyFlows = errors.New("too many clients at a time")

// flow returns the socket inside for a client, and opens it for the client's first datagram.
func (f *udpFlows) flow(client udpClient) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.conns[client]; ok {
		return c, nil
	}
	if len(f.conns) >= maxFlows {
		return nil, errManyFlows
	}
	c, err := f.r.dialer.dial(context.Background(), "udp", f.r.target(f.port.ChildPort))
	if err != nil {
		return nil, err
	}
	f.conns[client] = c
	if err := f.r.start(c, func() { f.answer(client, c) }); err != nil {
		delete(f.conns, client)
		return nil, err
	}
	return c, nil
}

// answer sends the container's datagrams to one client, until the flow has been idle for udpIdle.
func (f *udpFlows) answer(client udpClient, c net.Conn) {
	defer func() {
		f.mu.Lock()
		delete(f.conns, client)
		f.mu.Unlock()
	}()
	buf, source := make([]byte, maxDatagram), fromAddress(client.local)
	for {
		n, err := c.Read(buf)
		var ne net.Error
		switch {
		case err == nil:
			_ = c.SetReadDeadline(time.Now().Add(udpIdle))
			_, _, _ = f.out.WriteMsgUDPAddrPort(buf[:n], source, client.addr)
		case errors.Is(err, net.ErrClosed), errors.As(err, &ne) && ne.Timeout():
			return
		}
		// Any other error is an ICMP error that one datagram caused.
	}
}
