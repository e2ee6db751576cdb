// Package tap moves Ethernet frames between the gateway and the guest's kernel.
//
// # Theory of operation
//
// The guest's uplink is opened inside its namespaces by somebody who may (package userns); what arrives here is a
// non-blocking file descriptor. Three kinds exist, and all are used through Device:
//
//   - a TAP with virtio-net headers: TCP crosses in frames of up to 64 KiB at any MTU, with partial checksums. One
//     readv or writev moves one frame;
//   - a TAP without them, where the kernel or a device made by somebody else refuses the headers;
//   - a packet socket on the far end of a veth pair, where /dev/net/tun is missing or forbidden. It has the same headers
//     (PACKET_VNET_HDR), and several frames cross in one recvmmsg or sendmmsg.
//
// A reader waits in Go's netpoller, not in a system call: the goroutines it wakes then run on the same thread, which is
// what a round trip's latency consists of. Writers never wait; each write of a TAP is atomic, so they need no lock.
//
// # Limits
//
// A frame has at most 65535+14 bytes. VLAN tags are not carried: the kernel strips them from packet sockets and the
// stack drops them.
//
// # Non-goals
//
// Opening devices, configuring addresses, and understanding frames.
package tap
