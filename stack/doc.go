// Package stack is the gateway of a network: the TCP/IP stack on the other end of the guest's link.
//
// # Theory of operation
//
// Each device has a receiver, which reads a few frames per wake-up. It is run by one goroutine per device or, during a quick
// exchange, by another goroutine of its busy-poll group (internal/spin). A frame takes one of these paths:
//
//   - TCP goes to gVisor's netstack, which terminates it. A SYN becomes a TCPRequest for the Handler, and the handshake is
//     completed only when the Handler accepts. Frames carry up to 64 KiB with partial checksums (virtio-net headers), so one
//     pass through netstack moves what would be 44 packets on an Ethernet link. A SYNHandler, if one is set, sees each SYN
//     first and may take it over for a datapath outside netstack.
//   - UDP goes to the Handler without netstack, whose forwarder would clone and lock for each packet. A single datagram is
//     passed on without a copy; datagrams of one flow that are ready at the same time are combined into a GSO batch
//     (udp_gso.go). Fragments go through netstack, which reassembles them. The checksum of reassembled TCP segments is not
//     verified.
//   - ICMP echo requests for the gateway are answered here; those for other addresses go to the Handler. ICMP errors go to the
//     owner of the flow they quote. The stack never answers in the name of another address.
//   - ARP, neighbour and router discovery, DHCPv4 and DHCPv6 are answered here, for the gateway's own addresses.
//
// In the other direction everything runs on the sender's goroutine: each packet of netstack's and each datagram of WriteUDP becomes
// one frame and one system call.
//
// # Configuration of netstack
//
// Netstack accepts packets to every destination (promiscuous mode), and its endpoints may have any local address (spoofing),
// because connections of a published port come from the client's own address. The receive path verifies checksums, because
// netstack has no way to mark the checksum of a single packet as partial. Netstack's ARP and neighbour discovery are not used, since in
// promiscuous mode they would answer for every address. Netstack may send TCP only: all other packets it generates are dropped.
//
// The guest's link address is initially the one given to AddPort. Another one replaces it only if no frame from the
// current one has arrived for two seconds, so that forged frames cannot redirect a flow.
//
// # States and failures
//
// A Stack is made by New, gets its Handler, then its ports (AddPort). When a device ends, its port is removed. Close resets all
// connections and waits for all goroutines. A malformed frame is dropped and counted. A panic on the receive path or in a
// handler loses the frame or the connection it happened in. A panic on one of netstack's own goroutines, which process segments
// of established connections, cannot be caught.
//
// # Limits
//
//   - 8192 connection requests in flight (maxInFlightSYN)
//   - SYNs that come to nothing: 250 a second for a destination, 1000 for all, after bursts of 2048 and 8192 (synLimit)
//   - 64 MiB of data in the buffers of all TCP connections and of segments that hold it (Config.TCPBuffers, buffers.go,
//     segments.go), with some 30 kilobytes for each connection beyond that
//   - 16 urgent bytes of a connection that were not read yet (urgent.go); further ones are in the stream
//   - 4 MiB of fragments per address family (netstack)
//   - 64 IP addresses (maxPortAddrs) and one link address per guest
//   - 128 datagrams per GSO frame of the guest
//   - IPv6 extension headers other than the fragment header are dropped
//   - transport protocols other than TCP, UDP and ICMP are answered with "protocol unreachable"
//
// # Non-goals
//
// The package does not decide which destinations are permitted, and does not use sockets of the host: see packages policy and
// forwarder.
//
// # Lock order
//
//	spin.Member.mu (held while the receiver runs) → locks of the Handler → netstack's receive path → synTable.mu
//	    → netstack's tcp.Forwarder and send path → port.mu → capture.mu in tap
//	Stack.mu → capture.mu in tap
//
//	sentSegments.mu → connBuffers.mu → netstack's endpoint locks → connTable.mu, urgentState.mu, bufferBudget.mu
//
// link.mu and synLimit.mu are taken with any of these held, and nothing is locked under them. The locks of two ports are never
// held together. A Writer passed to Conn.ReadTo is called with an endpoint's lock of netstack held.
//
// # Imports
//
// gVisor's netstack, the DHCP message library, and of this project tap and internal/spin.
package stack
