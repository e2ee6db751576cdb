package tap

import (
	"errors"
	"net"

	"rootlessnet/internal/spin"
)

// Kind names how a Device is made. The names are those of the --link flag.
type Kind string

const (
	KindTAP      Kind = "tap"       // TAP with virtio-net headers and offloads
	KindTAPPlain Kind = "tap-plain" // TAP without them
	KindPacket   Kind = "packet"    // veth pair, far end read by AF_PACKET
	KindSocket   Kind = "socket"    // a socket that carries a frame a message, its other end anybody's
)

// HeaderLen is the size in bytes of struct virtio_net_hdr (include/uapi/linux/virtio_net.h), the form without
// num_buffers, which both IFF_VNET_HDR and PACKET_VNET_HDR use by default.
const HeaderLen = 10

// Values of Header.Flags and Header.GSOType (include/uapi/linux/virtio_net.h).
const (
	FlagNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	FlagDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	GSONone  = 0 // VIRTIO_NET_HDR_GSO_NONE
	GSOTCPv4 = 1 // VIRTIO_NET_HDR_GSO_TCPV4
	GSOTCPv6 = 4 // VIRTIO_NET_HDR_GSO_TCPV6
	GSOUDPL4 = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
	GSOECN   = 0x80
)

// Header is struct virtio_net_hdr in host (little-endian) byte order.
type Header struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // bytes of headers before the payload
	GSOSize    uint16 // payload bytes per segment
	CsumStart  uint16 // offset in the frame where the checksummed bytes begin
	CsumOffset uint16 // offset from CsumStart of the checksum field
}

// Frame is one Ethernet frame in pieces.
type Frame struct {
	Header Header
	// Bufs: on read, space filled in order; on write, the pieces of the frame in order. Empty pieces are allowed.
	Bufs [][]byte
	// Len is set by ReadFrames to the bytes of the frame (virtio header excluded) that were put into Bufs.
	Len int
}

// Info says what a Device is and can do; it never changes.
type Info struct {
	Kind Kind
	Name string           // interface name in the namespace
	MAC  net.HardwareAddr // the guest's end
	MTU  int              // bytes, without the Ethernet header
	CSum bool             // partial checksums in both directions (Header.FlagNeedsCsum is understood)
	TSO  bool             // TCP frames up to 64 KiB in both directions
	USO  bool             // UDP_L4 frames in both directions
}

// ErrClosed is returned by a Device that was closed, or whose namespace is gone.
var ErrClosed = errors.New("tap: device closed")

// Device moves Ethernet frames between us and the guest's kernel.
//
// ReadFrames blocks until at least one frame is there, then takes what is ready, at most len(frames), and returns how
// many frames it filled. A frame that does not fit its Bufs is dropped and counted, never truncated; where frames come
// in batches its slot has Len 0. One reader at a time. Any error is final and is ErrClosed when it means the end.
//
// WriteFrames writes the frames in order and returns how many the kernel took. It may be called from any goroutine.
// It never blocks for long: when the guest's queue is full the frame is dropped and counted, as a wire would.
//
// Close unblocks a reader, may be called more than once, and releases every fd.
type Device interface {
	ReadFrames(frames []Frame) (n int, err error)
	WriteFrames(frames []Frame) (n int, err error)
	Info() Info
	Stats() Stats
	Close() error
}

// Poller is a Device that can be read by turns.
//
// PollFrames is ReadFrames, but returns 0 when nothing is ready.
//
// Serve calls turn, which reads with PollFrames, whenever there may be something, until turn says spin.Done, which is nil, or the
// device is closed or has failed. turn is called by this goroutine, and by those of the group who look; not twice at once.
type Poller interface {
	PollFrames(frames []Frame) (n int, err error)
	Serve(turn func() spin.Result) error
}

// Spinner is a Poller whose turns are those of a group. Spin must come before Serve.
type Spinner interface {
	Spin(g *spin.Group)
}

// Stats counts since the device was opened.
type Stats struct {
	RxFrames, RxBytes uint64 // from the guest
	TxFrames, TxBytes uint64 // to the guest
	RxDropped         uint64 // too large for the reader's buffers, or lost by the kernel on the way to us
	TxDropped         uint64 // refused by the kernel
}
