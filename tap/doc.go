// Package tap moves Ethernet frames between this process and the guest's kernel: over a TAP device with virtio-net headers and
// offloads, over a plain TAP device, over a packet socket on the far end of a veth pair, or over a socket that carries one frame
// per message. It opens no device: a process with the capabilities for it creates the descriptor inside the namespace, and FromFD
// takes it over.
//
// # Theory of operation
//
// The descriptor is non-blocking and registered in Go's network poller, so no thread blocks in read(2): after 20 µs Go would take
// the P from such a thread, which would have to get one back before it could deliver the frame. One wake-up reads all frames that
// are ready, as far as the reader has supplied buffers: by readv until EAGAIN on a TAP (the kernel returns one frame per call),
// by recvmmsg on a packet socket. A reader that uses Serve also takes part in busy polling (internal/spin).
//
// Writers do not wait for one another: each frame is one writev, which the kernel takes whole or not at all, and the scratch
// memory of a call comes from a pool. Several frames for a packet socket are sent by one sendmmsg. No frame costs an allocation in
// either direction.
//
// With a virtio-net header (struct virtio_net_hdr, 10 bytes, in front of each frame) the guest's kernel passes TCP and UDP in
// frames of up to 64 KiB, not yet segmented nor checksummed, and accepts the same.
//
// # States and errors
//
// A Device is open, then closed; it cannot be opened again. The following happens while it is open:
//
//   - A frame too large for the reader's buffers is dropped and counted in RxDropped. On a TAP it is detected by one spare byte
//     behind the buffers, because tun_do_read (drivers/net/tun.c) truncates silently; a packet socket reports MSG_TRUNC.
//   - If the guest's queue is full (EAGAIN, ENOBUFS), the kernel has no memory, the guest has set its interface down (EIO,
//     ENETDOWN), or the kernel rejects the virtio-net header (EINVAL), the frame is dropped at once and counted in TxDropped.
//     Waiting would delay all other flows, because the network stack's locks are held; TCP retransmits. A TAP's own limit
//     (TUNSETSNDBUF, 2 GiB by default) is practically never reached. Reading continues when the interface is up again.
//   - The kernel takes the VLAN tag off a frame before a packet socket reads it. Such a frame is dropped and counted, since
//     without its tag it would look like one of the untagged network. A TAP leaves the tag in the frame.
//   - When the interface or its namespace is deleted, reads and writes return ErrClosed.
//
// All calls are raw system calls: none of them can block, so Go's scheduler need not be informed. If it were, and copying 64 KiB
// took longer than 20 µs, the scheduler would give the P to another thread in the middle of a flow, which costs a quarter of the
// processor time per byte.
//
// # Limits
//
// A frame to be written has at most 1023 buffers (UIO_MAXIOV, less the header). Frames lost in a TAP's own queue (txqueuelen) are
// counted only by the interface, inside the guest's namespace. Multi-queue is not used: persistent devices created by other
// programs refuse it, and one reader keeps two processors busy (bench/scheduler.md).
//
// # Lock order
//
//	capture.mu
//
// It guards the queue of the packet capture and is held for a copy only; nothing is locked under it. A Device itself has no
// mutex: its reading state belongs to the one reader, its counters are atomic.
//
// # Imports
//
// Of this project only internal/spin.
package tap
