package guest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
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
	rawSocket := true
	c, err := icmp.ListenPacket(raw, any)
	if err != nil {
		rawSocket = false
		dst = &net.UDPAddr{IP: to.AsSlice()}
		if c, err = icmp.ListenPacket(plain, any); err != nil {
			return Pong{}, err
		}
	}
	defer c.Close()
	data := bytes.Repeat([]byte("echo"), 14)
	// A raw socket sees what is for every program of the namespace, so each request has an identifier of its own. A ping socket
	// has the kernel's instead, and sees nothing else.
	echo := icmp.Echo{ID: int(rand.Uint32() & 0xffff), Seq: int(rand.Uint32() & 0xffff), Data: data}
	m := icmp.Message{Type: request, Body: &echo}
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
			if got.Type == reply && body.Seq == echo.Seq && (body.ID == echo.ID || !rawSocket) && bytes.Equal(body.Data, data) {
				return Pong{}, nil
			}
		case *icmp.DstUnreach, *icmp.PacketTooBig, *icmp.TimeExceeded:
			if quotesEcho(b[:n], to, request, echo.ID, echo.Seq) {
				return Pong{Outcome(fmt.Sprint(got.Type)), got.Code}, nil
			}
		} // others are answers to another program, or neighbour discovery
	}
}

// quotesEcho reports whether the ICMP error message quotes the echo request with the given identifier and sequence number that
// was sent to the address to. Errors that other packets of the namespace caused reach every raw socket too.
func quotesEcho(message []byte, to netip.Addr, request icmp.Type, id, seq int) bool {
	const errorHeader, echoHeader = 8, 8
	if len(message) < errorHeader+ipv4.HeaderLen {
		return false
	}
	quoted, header, dst, kind := message[errorHeader:], 0, netip.Addr{}, byte(0)
	switch request := request.(type) {
	case ipv4.ICMPType:
		kind = byte(request)
		if quoted[0]>>4 != 4 || quoted[9] != protoICMP {
			return false
		}
		header = int(quoted[0]&15) * 4
		dst = netip.AddrFrom4([4]byte(quoted[16:20]))
	case ipv6.ICMPType:
		kind = byte(request)
		if len(quoted) < ipv6.HeaderLen || quoted[0]>>4 != 6 || quoted[6] != protoICMPv6 {
			return false
		}
		header = ipv6.HeaderLen
		dst = netip.AddrFrom16([16]byte(quoted[24:40]))
	}
	if header < ipv4.HeaderLen || len(quoted) < header+echoHeader || dst != to {
		return false
	}
	e := quoted[header:]
	return e[0] == kind && int(binary.BigEndian.Uint16(e[4:])) == id && int(binary.BigEndian.Uint16(e[6:])) == seq
}
