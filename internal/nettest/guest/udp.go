package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/miekg/dns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// serveUDP: ADDR [NETWORK]. Answers each datagram with "PEER DATA".
func serveUDP(args []string) (string, error) {
	c, err := net.ListenPacket(arg(args, 1, "udp"), arg(args, 0, ":0"))
	if err != nil {
		return "", err
	}
	go EchoUDP(c)
	return c.LocalAddr().String(), nil
}

// EchoUDP answers each datagram with the sender's address, a space and the data, until c is closed.
func EchoUDP(c net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		_, _ = c.WriteTo(append([]byte(from.String()+" "), b[:n]...), from)
	}
}

// udp: ADDR TEXT [TIMEOUT]. Sends one datagram and prints the answer, or the errno that came back.
func udp(args []string) (string, error) {
	timeout, err := duration(args, 2, 2*time.Second)
	if err != nil {
		return "", err
	}
	c, err := net.Dial("udp", arg(args, 0, ""))
	if err != nil {
		return Errno(err), nil
	}
	defer c.Close()
	if err := reportErrors(c.(*net.UDPConn)); err != nil {
		return "", err
	}
	return AskUDP(c, arg(args, 1, "hello"), timeout)
}

// reportErrors asks the kernel for every ICMP error; without it only those that it takes for final are reported.
func reportErrors(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, name := unix.SOL_IP, unix.IP_RECVERR
	if c.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
		level, name = unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, name, 1) }); err != nil {
		return err
	}
	return failed
}

// AskUDP sends one datagram on a connected socket and returns the answer or the errno.
func AskUDP(c net.Conn, text string, timeout time.Duration) (string, error) {
	if _, err := c.Write([]byte(text)); err != nil {
		return Errno(err), nil
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	b := make([]byte, 64<<10)
	n, err := c.Read(b)
	if err != nil {
		return Errno(err), nil
	}
	return string(b[:n]), nil
}

// udpBurst: ADDR FLOWS. Sends one datagram from each of many sockets, two at a time open, to an EchoUDP and prints how
// many were answered.
func udpBurst(args []string) (string, error) {
	flows, err := number(args, 1, 100)
	if err != nil {
		return "", err
	}
	answered := 0
	for i := range flows {
		c, err := net.Dial("udp", arg(args, 0, ""))
		if err != nil {
			return "", err
		}
		got, err := AskUDP(c, fmt.Sprintf("flow%d", i), time.Second)
		c.Close()
		if err != nil {
			return "", err
		}
		if strings.HasSuffix(got, fmt.Sprintf(" flow%d", i)) {
			answered++
		}
	}
	return fmt.Sprint(answered), nil
}

// udpTrains: ADDR. Asks an EchoUDP with TrainsUDP and prints its result, "ok" when all is well.
func udpTrains(args []string) (string, error) {
	c, err := net.Dial("udp", arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	defer c.Close()
	return TrainsUDP(c), nil
}

// TrainsUDP sends datagrams to an EchoUDP, several at a time, and says what is wrong with the answers: each must come,
// in order, and be of the same size and content. It says "ok" when nothing is.
func TrainsUDP(c net.Conn) string {
	b := make([]byte, 64<<10)
	for round, sizes := range [][]int{
		{1400, 1400, 1400, 1400, 1400, 1400, 1400, 1400, 1400, 1400, 1400, 300},
		{0, 0, 5, 5, 0, 5},
		{9000, 9000, 9000, 9000, 100},
		{60, 60, 60, 1000, 1000, 0, 1000, 40, 40, 41, 1, 1},
	} {
		sent := make([]string, len(sizes))
		for i, n := range sizes {
			sent[i] = strings.Repeat(string(rune('a'+i)), n)
			if _, err := c.Write([]byte(sent[i])); err != nil {
				return fmt.Sprintf("round %d, datagram %d: %s", round, i, Errno(err))
			}
		}
		for i, want := range sent {
			if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				return err.Error()
			}
			n, err := c.Read(b)
			if err != nil {
				return fmt.Sprintf("round %d, answer %d: %s", round, i, Errno(err))
			}
			if _, got, _ := strings.Cut(string(b[:n]), " "); got != want {
				return fmt.Sprintf("round %d, answer %d: %d bytes %.10q, want %d bytes %.10q", round, i, len(got), got, len(want), want)
			}
		}
	}
	return "ok"
}

// ping: ADDR [TIMEOUT]. Sends one echo request through a raw socket, or a ping socket where that is not allowed, and
// prints "reply BYTES" or the type and code of the error that came instead.
func ping(args []string) (string, error) {
	to, err := netip.ParseAddr(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	timeout, err := duration(args, 1, 2*time.Second)
	if err != nil {
		return "", err
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
			return "", err
		}
	}
	defer c.Close()
	data := bytes.Repeat([]byte("echo"), 14)
	m := icmp.Message{Type: request, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: data}}
	packet, err := m.Marshal(nil)
	if err != nil {
		return "", err
	}
	if _, err := c.WriteTo(packet, dst); err != nil {
		return Errno(err), nil
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	b := make([]byte, 64<<10)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return Errno(err), nil
		}
		got, err := icmp.ParseMessage(protocol, b[:n])
		if err != nil {
			return "", err
		}
		switch body := got.Body.(type) {
		case *icmp.Echo:
			if got.Type == reply && bytes.Equal(body.Data, data) {
				return fmt.Sprintf("reply %d", len(body.Data)), nil
			}
		case *icmp.DstUnreach, *icmp.PacketTooBig, *icmp.TimeExceeded:
			return fmt.Sprintf("%v %d", got.Type, got.Code), nil
		} // the rest is another's, or neighbour discovery
	}
}

// query: NAME TYPE SERVER [tcp]. Prints the rcode and the answers' data.
func query(args []string) (string, error) {
	if len(args) < 3 {
		return "", errors.New("dns NAME TYPE SERVER [tcp]")
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(args[0]), dns.StringToType[strings.ToUpper(args[1])])
	c := dns.Client{Net: arg(args, 3, "udp"), Timeout: patience}
	in, _, err := c.Exchange(m, net.JoinHostPort(args[2], "53"))
	if err != nil {
		return Errno(err), nil
	}
	words := []string{dns.RcodeToString[in.Rcode]}
	for _, rr := range in.Answer {
		words = append(words, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(words, " "), nil
}

// dhcp: INTERFACE. Asks for a lease and prints "ADDRESS/BITS ROUTER DNS".
func dhcp(args []string) (string, error) {
	c, err := nclient4.New(arg(args, 0, "eth0"), nclient4.WithTimeout(patience))
	if err != nil {
		return "", err
	}
	defer c.Close()
	lease, err := c.Request(context.Background())
	if err != nil {
		return Errno(err), nil
	}
	bits, _ := lease.ACK.SubnetMask().Size()
	return fmt.Sprintf("%v/%d %v %v", lease.ACK.YourIPAddr, bits, first(lease.ACK.Router()), first(lease.ACK.DNS())), nil
}

func first(list []net.IP) net.IP {
	if len(list) == 0 {
		return nil
	}
	return list[0]
}
