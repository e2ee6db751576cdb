// Package stack is the gateway of a network: what the guest's kernel talks to on the other end of its link.
//
// # Theory of operation
//
// One goroutine per device, or in a quick exchange another one of its group (internal/spin), reads frames, a few per
// wake-up, and sends each down one of four roads:
//
//   - TCP goes to gVisor's netstack, which terminates it. A SYN becomes a TCPRequest for the Handler: the handshake is
//     completed only when the Handler says so. Frames carry up to 64 KiB and their checksums are left to be filled in
//     (virtio-net headers), so one pass through netstack moves what would be 44 packets on a wire.
//   - UDP goes to the Handler beside netstack, whose forwarder would clone and lock for each packet: a lone datagram
//     without a copy, those of one flow that are ready at once as a train, see udp_train.go.
//     Only fragments take the way through netstack, which puts them together; what of TCP comes in fragments keeps
//     the checksum nobody has looked at.
//   - ICMP echo requests for the gateway are answered here; those for others go to the Handler. Errors go to whom they
//     concern. Nothing is ever answered on behalf of somebody else.
//   - ARP, neighbour and router discovery, DHCPv4 and DHCPv6 are answered here, for the gateway's own addresses.
//
// The other direction is on the sender's goroutine: netstack's packets, and datagrams of WriteUDP, become a frame and
// one system call.
//
// # What netstack must be told
//
// It takes every destination as its own (promiscuous) and any source for its endpoints (spoofing): connections of a
// published port come from the client's own address. Checksums of what it receives are verified here: it cannot be told
// per packet that one is partial. Its ARP and neighbour discovery are not used, since with promiscuous mode on it would
// answer for every address there is. It speaks TCP and nothing else: whatever other packet it makes is dropped.
//
// The guest's link address is the one its device was made with; another is believed once that has been silent for two
// seconds, so that forged frames do not divert a flow.
//
// # States and failures
//
// A Stack is made, gets a Handler, then ports; Close resets all connections and ends all. A device that ends takes its
// port with it. A malformed frame costs a counter. A panic on the receive path or in a handler costs the frame or the
// connection it happened in; one on netstack's own goroutines (segments of established connections) cannot be caught.
//
// # Limits
//
// 8192 connection attempts under way; 4 MiB of reassembly per family (netstack); 64 addresses and one link address a
// guest; trains of at most 128 datagrams; no IPv6 extension headers but the fragment header; no SCTP or other
// transports: those are answered with "protocol unreachable".
//
// # Non-goals
//
// Judging destinations and touching sockets of the host: packages policy and forwarder.
package stack
