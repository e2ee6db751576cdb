package tap

import "encoding/binary"

// The fields of struct virtio_net_hdr are in host byte order (legacy virtio) unless TUNSETVNETLE is used, which this package
// does not.

func decodeHeader(b *[HeaderLen]byte) Header {
	e := binary.NativeEndian
	return Header{Flags: b[0], GSOType: b[1], HdrLen: e.Uint16(b[2:]), GSOSize: e.Uint16(b[4:]), CsumStart: e.Uint16(b[6:]), CsumOffset: e.Uint16(b[8:])}
}

func (h *Header) encode(b *[HeaderLen]byte) {
	e := binary.NativeEndian
	b[0], b[1] = h.Flags, h.GSOType
	e.PutUint16(b[2:], h.HdrLen)
	e.PutUint16(b[4:], h.GSOSize)
	e.PutUint16(b[6:], h.CsumStart)
	e.PutUint16(b[8:], h.CsumOffset)
}
