// Package tap moves Ethernet frames between us and the guest's kernel: over a TAP device with virtio-net headers and
// offloads, over a plain TAP, or over a packet socket on the far end of a veth pair. It opens nothing: the descriptor
// is made inside the namespace by someone with the capabilities for it, and FromFD takes it over.
//
// # Theory of operation
//
// The descriptor is non-blocking and belongs to Go's poller, so no thread sleeps in a read: a thread that did would
// lose its P after 20 µs and had to get one back before it could deliver the frame. A wake-up takes all the frames that
// are ready, up to what the reader offers: by readv until EAGAIN on a TAP (its kernel side gives one frame a call), by
// recvmmsg on a packet socket.
//
// Writers do not wait for one another: each frame is one writev, which both kinds take whole or not at all, and the
// scratch of a call comes from a pool. Several frames for a packet socket go by sendmmsg. No frame costs an allocation
// in either direction.
//
// With a virtio-net header (struct virtio_net_hdr, 10 bytes, in front of each frame) the guest's kernel hands over TCP
// and UDP in frames of up to 64 KiB, not yet segmented nor checksummed, and takes the same back.
//
// # When something is full, down or gone
//
//   - A frame too large for the reader's buffers: dropped, counted in RxDropped. It is found by one spare byte behind
//     the buffers: tun_do_read cuts to the length given without a word (drivers/net/tun.c). Packet sockets say MSG_TRUNC.
//   - The guest's queue is full (EAGAIN, ENOBUFS), the kernel has no memory, the guest set its interface down (EIO,
//     ENETDOWN), or the kernel finds the header wrong (EINVAL): the frame is dropped and counted in TxDropped, at once.
//     Waiting would hold up the other flows, with netstack's locks held; TCP sends again, and a TAP's own limit
//     (TUNSETSNDBUF, 2 GiB unless changed) is practically never met. Reading goes on when the interface comes up again.
//   - A VLAN tag on a packet socket was taken off the frame by the kernel. The frame is dropped and counted, since
//     without its tag it would pass for one of the untagged network. A TAP leaves the tag in the frame.
//   - The interface was deleted, or its namespace ended: ErrClosed.
//
// The calls are raw system calls: none of them can block, so the Go scheduler need not prepare for it. Where it does,
// and the copy of 64 KiB outlasts its patience of 20 µs, it hands the slot to another thread in the middle of a flow, which
// costs a quarter of the processor time per byte.
//
// # Limits
//
// A frame to write has at most 1023 pieces (UIO_MAXIOV, less the header). Frames that a TAP's own queue lost
// (txqueuelen) are counted only by the interface, inside. Multi-queue is not used: persistent devices made by others
// refuse it, and one reader fills two processors (bench/scheduler.md).
package tap
