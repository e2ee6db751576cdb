package stack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/tap"
)

// Malformed frames are dropped and counted, and the next echo request is answered (settle).
func TestMalformedFrames(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		change := func(f []byte, edit func(ip []byte)) []byte {
			edit(f[ethLen:])
			return f
		}
		ping4 := func() []byte { return echoRequest(guest4, gw4, 1, 1, pattern(20)) }
		ping6 := func() []byte { return echoRequest(guest6, gw6, 1, 1, pattern(20)) }
		var frames [][]byte
		for n := range 34 { // Ethernet and IPv4 header
			frames = append(frames, ping4()[:n])
		}
		for n := range 54 {
			frames = append(frames, ping6()[:n])
		}
		for n := range ethLen + header.ARPSize {
			frames = append(frames, arpRequest(guestMAC, guest4, gw4)[:n])
		}
		for v := range 256 {
			if v != 0x45 {
				frames = append(frames, change(ping4(), func(ip []byte) { ip[0] = byte(v) }))
			}
			if v>>4 != 6 {
				frames = append(frames, change(ping6(), func(ip []byte) { ip[0] = byte(v) }))
			}
		}
		for _, total := range []uint16{0, 19, 49, 1500, 0xffff} {
			frames = append(frames, change(ping4(), func(ip []byte) {
				binary.BigEndian.PutUint16(ip[2:], total)
				putIPv4Checksum(ip)
			}), change(ping6(), func(ip []byte) { binary.BigEndian.PutUint16(ip[4:], total|1) }))
		}
		frames = append(frames, change(ping4(), func(ip []byte) { ip[10] ^= 1 }))
		other := ping4()
		other[5] ^= 1
		vlan := ether(0x8100, pattern(60))
		b.dev.InjectBytes(append(frames, other, vlan)...)
		b.quiet("a malformed frame")
		b.settle()
		for _, r := range []DropReason{DropShort, DropIPHeader, DropARP, DropMAC, DropEtherType} {
			if b.drops(r) == 0 {
				t.Errorf("nothing was dropped as %q: %v", r, b.s.Stats().Drops)
			}
		}
		if b.drops(DropPanic) != 0 {
			t.Error("there was a panic")
		}
	})
}

func TestDropReasonsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range numDropReasons {
		if n := r.String(); n == "" || seen[n] {
			t.Errorf("reason %d is called %q", r, n)
		}
		seen[r.String()] = true
	}
}

// A TCP flow survives urgent pointers, malformed ARP and neighbour discovery, changed link addresses and random frames.
func TestFlowSurvivesGarbage(t *testing.T) {
	b := newBench(t, offloads(), nil)
	conns := b.accept()
	src, dst := ap(guest4, 4000), ap(far4, 80)
	b.dev.InjectBytes(tcpFrame(src, dst, 100, 0, header.TCPFlagSyn, nil))
	ack := header.TCP(b.next().payload).SequenceNumber() + 1
	b.dev.InjectBytes(tcpFrame(src, dst, 101, ack, header.TCPFlagAck, nil))
	c := <-conns
	rng := rand.New(rand.NewPCG(1, 2))
	seq := uint32(101)
	var got bytes.Buffer
	for i := range 400 {
		urg := tcpFrame(src, dst, seq, ack, header.TCPFlagAck|header.TCPFlagUrg, nil)
		u := urg[ethLen+20:]
		binary.BigEndian.PutUint16(u[18:], uint16(i*163))
		u[16], u[17] = 0, 0
		binary.BigEndian.PutUint16(u[16:], ^sumWith(pseudoSumAddr(guest4, far4, protoTCP, len(u)), u))
		mac := net.HardwareAddr{2, byte(rng.Uint32()), byte(rng.Uint32()), 1, 1, 1}
		forged := udpFrame(src, ap(far4, 9), nil)
		copy(forged[6:], mac)
		noise := make([]byte, 14+rng.IntN(200))
		for j := range noise {
			noise[j] = byte(rng.Uint32())
		}
		copy(noise, gwMAC)
		copy(noise[12:], [][]byte{{8, 0}, {8, 6}, {0x86, 0xdd}}[i%3])
		b.dev.InjectBytes(urg, arpRequest(mac, guest4, far4), neighborSolicit(guest6, far6, far6)[:60+i%20], forged, noise,
			tcpFrame(src, dst, seq, ack, header.TCPFlagAck, []byte{byte(i)}))
		seq++
		if i%20 == 0 { // many small segments close the window, which a guest would respect
			waitFor(t, "the bytes so far", func() bool {
				_, _ = c.ReadTo(&got)
				return got.Len() == i+1
			})
		}
	}
	b.settle()
	waitFor(t, "all bytes", func() bool {
		_, _ = c.ReadTo(&got)
		return got.Len() == 400
	})
	for i, v := range got.Bytes() {
		if v != byte(i) {
			t.Fatalf("byte %d is %d", i, v)
		}
	}
	if _, err := c.WriteFrom(bytes.NewReader([]byte("alive")), 5); err != nil {
		t.Fatal(err)
	}
	for {
		if k := b.next(); k.proto == protoTCP && bytes.HasSuffix(k.payload, []byte("alive")) {
			if !bytes.Equal(k.dstMAC, guestMAC) {
				t.Errorf("sent to %v", k.dstMAC)
			}
			break
		}
	}
	if b.drops(DropPanic) != 0 {
		t.Error("there was a panic")
	}
	c.Abort()
}
