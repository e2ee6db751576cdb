package guest

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Ping sends one echo request of 56 bytes through a raw socket, or through a ping socket where that is not allowed.
type Ping struct {
	To      netip.Addr
	Timeout time.Duration // 0 for two seconds
}

// Pong is what came back.
type Pong struct {
	Outcome Outcome // OK for the whole echo; for an ICMP error the type's name, such as "destination unreachable"
	Code    int     // of the ICMP error
}

// Unreachable is the Outcome of a Ping that was answered by an error of that type.
const Unreachable Outcome = "destination unreachable"

func (op Ping) run() (Pong, error) {
	to := op.To
	if op.Timeout == 0 {
		op.Timeout = 2 * time.Second
	}
	raw, plain, any, protocol := "ip4:icmp", "udp4", "0.0.0.0", protoICMP
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		raw, plain, any, protocol = "ip6:ipv6-icmp", "udp6", "::", protoICMPv6
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	// A raw socket sees the errors that are answers too.
	var dst net.Addr = &net.IPAddr{IP: to.AsSlice()}
	c, err := icmp.ListenPacket(raw, any)
	if err != nil {
		dst = &net.UDPAddr{IP: to.AsSlice()}
		if c, err = icmp.ListenPacket(plain, any); err != nil {
			return Pong{}, err
		}
	}
	defer c.Close()
	data := bytes.Repeat([]byte("echo"), 14)
	m := icmp.Message{Type: request, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: data}}
	packet, err := m.Marshal(nil)
	if err != nil {
		return Pong{}, err
	}
	if _, err := c.WriteTo(packet, dst); err != nil {
		return Pong{Outcome: OutcomeOf(err)}, nil
	}
	if err := c.SetReadDeadline(time.Now().Add(op.Timeout)); err != nil {
		return Pong{}, err
	}
	b := make([]byte, 64<<10)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return Pong{Outcome: OutcomeOf(err)}, nil
		}
		got, err := icmp.ParseMessage(protocol, b[:n])
		if err != nil {
			return Pong{}, err
		}
		switch body := got.Body.(type) {
		case *icmp.Echo:
			if got.Type == reply && bytes.Equal(body.Data, data) {
				return Pong{}, nil
			}
		case *icmp.DstUnreach, *icmp.PacketTooBig, *icmp.TimeExceeded:
			return Pong{Outcome(fmt.Sprint(got.Type)), got.Code}, nil
		} // others are answers to another program, or neighbour discovery
	}
}
