package tap

import (
	"errors"
	"net"

	"rootlessnet/internal/spin"
)

// Kind is the kind of file behind a Device. Its values are those of the --link flag.
type Kind string

const (
	KindTAP      Kind = "tap"       // TAP device with virtio-net headers and offloads
	KindTAPPlain Kind = "tap-plain" // TAP device without them
	KindPacket   Kind = "packet"    // AF_PACKET socket on the far end of a veth pair
	KindSocket   Kind = "socket"    // SOCK_SEQPACKET or SOCK_DGRAM socket that carries one frame per message
)

// HeaderLen is the size in bytes of struct virtio_net_hdr (include/uapi/linux/virtio_net.h), the form without
// num_buffers, which both IFF_VNET_HDR and PACKET_VNET_HDR use by default.
const HeaderLen = 10

// Values of Header.Flags and Header.GSOType (include/uapi/linux/virtio_net.h).
const (
	FlagNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	FlagDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	GSONone  = 0    // VIRTIO_NET_HDR_GSO_NONE
	GSOTCPv4 = 1    // VIRTIO_NET_HDR_GSO_TCPV4
	GSOTCPv6 = 4    // VIRTIO_NET_HDR_GSO_TCPV6
	GSOUDPL4 = 5    // VIRTIO_NET_HDR_GSO_UDP_L4
	GSOECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN, a flag that is combined with the type
)

// Header is struct virtio_net_hdr; its fields are in host byte order.
type Header struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // bytes of headers before the payload
	GSOSize    uint16 // payload bytes per segment
	CsumStart  uint16 // offset in the frame where the checksummed bytes begin
	CsumOffset uint16 // offset from CsumStart of the checksum field
}

// Frame is one Ethernet frame in one or more buffers.
type Frame struct {
	Header Header
	// Bufs is, for reading, the space to be filled in order; for writing, the content in order. Empty buffers are allowed.
	Bufs [][]byte
	// Len is set by reads to the number of bytes that were put into Bufs; the virtio-net header does not count.
	Len int
}

// Info describes a Device. It does not change while the Device is open.
type Info struct {
	Kind Kind
	Name string           // interface name in the namespace
	MAC  net.HardwareAddr // of the guest's interface
	MTU  int              // bytes, without the Ethernet header
	CSum bool             // partial checksums in both directions (FlagNeedsCsum)
	TSO  bool             // TCP frames up to 64 KiB in both directions
	USO  bool             // GSOUDPL4 frames up to 64 KiB in both directions
}

// ErrClosed is returned by a Device that was closed or whose interface was deleted.
var ErrClosed = errors.New("tap: device closed")

// Device moves Ethernet frames between this process and the guest's kernel.
//
// ReadFrames blocks until at least one frame is ready, reads all that are, at most len(frames), and returns how many elements
// of frames it filled. A frame that does not fit its Bufs is dropped and counted, never truncated; where frames are read in
// batches its element has Len 0. One goroutine at a time may read. Any error is final; it is ErrClosed if the device was closed
// or deleted, else an *Error.
//
// WriteFrames writes the frames in order and returns how many the kernel accepted. It may be called from any goroutine. It does not
// block: when the guest's queue is full, frames are dropped and counted, as on an Ethernet link. The only error is ErrClosed.
//
// Close unblocks the reader and releases the descriptor. It may be called more than once and from any goroutine, as may Info
// and Stats.
type Device interface {
	ReadFrames(frames []Frame) (n int, err error)
	WriteFrames(frames []Frame) (n int, err error)
	Info() Info
	Stats() Stats
	Close() error
}

// Poller is a Device that calls a handler when frames may be ready.
//
// PollFrames is ReadFrames, but returns 0 instead of blocking.
//
// Serve calls handler, which reads with PollFrames, whenever frames may be ready. It returns nil when handler has returned
// spin.Done, and ErrClosed when the device was closed. Serve's goroutine calls handler, and so may any goroutine that busy-polls
// the device's group, but never two at once.
type Poller interface {
	PollFrames(frames []Frame) (n int, err error)
	Serve(handler func() spin.Result) error
}

// BusyPoller is a Poller whose Serve can take part in a busy-poll group. SetBusyPollGroup must be called before Serve; g may be
// nil.
type BusyPoller interface {
	SetBusyPollGroup(g *spin.Group)
}

// Stats counts frames and bytes since the device was opened.
type Stats struct {
	RxFrames, RxBytes uint64 // from the guest
	TxFrames, TxBytes uint64 // to the guest
	RxDropped         uint64 // too large for the reader's buffers, VLAN-tagged, unreadable, or lost in the packet socket's queue
	TxDropped         uint64 // refused by the kernel, empty, or in too many buffers
}
