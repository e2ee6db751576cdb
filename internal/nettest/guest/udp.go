package guest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ServeUDP answers each datagram as EchoUDP. The result is the socket's address.
type ServeUDP struct {
	Addr netip.Addr    // the zero Addr for every address of both families
	Port uint16        // 0 for a free one
	For  time.Duration `json:",omitempty"` // after which the server ends; 0 for never
}

func (op ServeUDP) run() (netip.AddrPort, error) {
	c, err := net.ListenPacket("udp", listenAddress(op.Addr, op.Port))
	if err != nil {
		return netip.AddrPort{}, err
	}
	go EchoUDP(c)
	if op.For > 0 {
		time.AfterFunc(op.For, func() { c.Close() })
	}
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), nil
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

// AskUDP sends one datagram to an EchoUDP and waits for the answer, or for the error that comes instead.
type AskUDP struct {
	To      Target
	Text    string
	Timeout time.Duration // 0 for two seconds
}

func (op AskUDP) run() (Echoed, error) {
	c, err := net.Dial("udp", op.To.String())
	if err != nil {
		return Echoed{Outcome: OutcomeOf(err)}, nil
	}
	defer c.Close()
	if err := reportErrors(c.(*net.UDPConn)); err != nil {
		return Echoed{}, err
	}
	return op.On(c), nil
}

// On is the exchange on a connected socket.
func (op AskUDP) On(c net.Conn) Echoed {
	if op.Timeout == 0 {
		op.Timeout = 2 * time.Second
	}
	if _, err := c.Write([]byte(op.Text)); err != nil {
		return Echoed{Outcome: OutcomeOf(err)}
	}
	if err := c.SetReadDeadline(time.Now().Add(op.Timeout)); err != nil {
		return Echoed{Outcome: OutcomeOf(err)}
	}
	b := make([]byte, 64<<10)
	n, err := c.Read(b)
	if err != nil {
		return Echoed{Outcome: OutcomeOf(err)}
	}
	client, text, _ := strings.Cut(string(b[:n]), " ")
	address, err := netip.ParseAddrPort(client)
	return Echoed{OutcomeOf(err), address, text}
}

// reportErrors has the kernel report every ICMP error; by default it reports only those that it counts as permanent.
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

// AskUDPFromMany sends a datagram to an EchoUDP from each of Flows sockets, one after the other. The result is how many were answered.
type AskUDPFromMany struct {
	To    Target
	Flows int
}

func (op AskUDPFromMany) run() (answered int, err error) {
	for i := range op.Flows {
		c, err := net.Dial("udp", op.To.String())
		if err != nil {
			return answered, err
		}
		text := fmt.Sprintf("flow%d", i)
		if got := (AskUDP{Text: text, Timeout: time.Second}).On(c); got.Outcome == OK && got.Text == text {
			answered++
		}
		c.Close()
	}
	return answered, nil
}

// AskUDPInBatches sends datagrams to an EchoUDP, several at a time, so that they travel in GSO batches. OK is set if every
// answer came, in order, with the size and the content that were sent.
type AskUDPInBatches struct{ To Target }

func (op AskUDPInBatches) run() (Outcome, error) {
	c, err := net.Dial("udp", op.To.String())
	if err != nil {
		return OutcomeOf(err), nil
	}
	defer c.Close()
	return op.On(c), nil
}

// On sends the datagrams on a connected socket.
func (AskUDPInBatches) On(c net.Conn) Outcome {
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
				return Outcome(fmt.Sprintf("round %d, datagram %d: %v", round, i, OutcomeOf(err)))
			}
		}
		for i, want := range sent {
			if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				return OutcomeOf(err)
			}
			n, err := c.Read(b)
			if err != nil {
				return Outcome(fmt.Sprintf("round %d, answer %d: %v", round, i, OutcomeOf(err)))
			}
			if _, got, _ := strings.Cut(string(b[:n]), " "); got != want {
				return Outcome(fmt.Sprintf("round %d, answer %d: %d bytes %.10q, want %d bytes %.10q", round, i, len(got), got, len(want), want))
			}
		}
	}
	return OK
}

// Seek sends a datagram, to a multicast group perhaps, on a socket that is not connected, and collects what anyone answers.
type Seek struct {
	To      netip.AddrPort
	Text    string
	TTL     int           `json:",omitempty"` // of a datagram to a group; 0 for the kernel's 1
	Answers int           // how many to wait for
	Timeout time.Duration // 0 for two seconds
}

// Answer is a datagram and where it came from.
type Answer struct {
	From netip.AddrPort
	Text string
}

func (op Seek) run() (answers []Answer, err error) {
	network := "udp4"
	if op.To.Addr().Is6() {
		network = "udp6"
	}
	c, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if op.TTL > 0 {
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, err
		}
		level, name := unix.IPPROTO_IP, unix.IP_MULTICAST_TTL
		if op.To.Addr().Is6() {
			level, name = unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS
		}
		var failed error
		if err := errors.Join(raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, name, op.TTL) }), failed); err != nil {
			return nil, err
		}
	}
	if _, err := c.WriteToUDPAddrPort([]byte(op.Text), op.To); err != nil {
		return nil, err
	}
	if op.Timeout == 0 {
		op.Timeout = 2 * time.Second
	}
	if err := c.SetReadDeadline(time.Now().Add(op.Timeout)); err != nil {
		return nil, err
	}
	b := make([]byte, 64<<10)
	for len(answers) < op.Answers {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			break // none came any more
		}
		answers = append(answers, Answer{netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()), string(b[:n])})
	}
	return answers, nil
}
