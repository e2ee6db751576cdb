package tap

import "os"

// NewFDDevice lets tests use any descriptor that preserves message boundaries.
func NewFDDevice(f *os.File, info Info) (Device, error) { return newFDDevice(f, info) }

func EncodeHeader(h Header) (b [HeaderLen]byte) { h.encode(&b); return b }
func DecodeHeader(b [HeaderLen]byte) Header     { return decodeHeader(&b) }
func VLANTagged(ctl []byte) bool                { return vlanTagged(ctl) }
