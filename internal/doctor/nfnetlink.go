package doctor

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A minimal nfnetlink client for the probes: it builds messages, sends them in one batch, and returns the first error of the
// acknowledgements (include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h).

// answerTimeout is the time limit for the answer to a netlink request. The kernel answers at once, unless it has to load a module.
const answerTimeout = 800 * time.Millisecond

// attr is one netlink attribute; its value is padded to 4 bytes.
func attr(typ uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func nested(typ uint16, attrs ...[]byte) []byte {
	var v []byte
	for _, a := range attrs {
		v = append(v, a...)
	}
	return attr(typ|unix.NLA_F_NESTED, v)
}

func str(typ uint16, s string) []byte  { return attr(typ, append([]byte(s), 0)) }
func be32(typ uint16, v uint32) []byte { return attr(typ, binary.BigEndian.AppendUint32(nil, v)) }
func be64(typ uint16, v uint64) []byte { return attr(typ, binary.BigEndian.AppendUint64(nil, v)) }
func expr(n string, a ...[]byte) []byte {
	return nested(unix.NFTA_LIST_ELEM, str(1, n), nested(2, a...))
}
func named(typ uint16, b []byte) nlmsg { return nlmsg{typ: typ, body: b} }
func nft(op uint16, attrs ...[]byte) nlmsg {
	return named(unix.NFNL_SUBSYS_NFTABLES<<8|op, join(attrs))
}

func join(attrs [][]byte) (b []byte) {
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

// nlmsg is a netlink message without its headers.
type nlmsg struct {
	typ   uint16
	resID uint16
	body  []byte
}

func (m nlmsg) append(b []byte, family uint8, flags uint16, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+4+len(m.body)))
	b = binary.NativeEndian.AppendUint16(b, m.typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, 0)
	b = binary.BigEndian.AppendUint16(b, m.resID)
	return append(b, m.body...)
}

// nftBatch runs a transaction of nf_tables in the network namespace of the calling thread and returns its first error.
func nftBatch(family uint8, msgs ...nlmsg) error {
	b := nlmsg{typ: unix.NFNL_MSG_BATCH_BEGIN, resID: unix.NFNL_SUBSYS_NFTABLES}.append(nil, unix.AF_UNSPEC, 0, 1)
	for i, m := range msgs {
		b = m.append(b, family, unix.NLM_F_CREATE|unix.NLM_F_ACK, uint32(i+2))
	}
	last := uint32(len(msgs) + 1)
	b = nlmsg{typ: unix.NFNL_MSG_BATCH_END, resID: unix.NFNL_SUBSYS_NFTABLES}.append(b, unix.AF_UNSPEC, 0, last+1)
	return nfRequest(b, last)
}

// nfRequest sends b and reads acknowledgements until that of sequence number last or an error.
func nfRequest(b []byte, last uint32) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("netfilter socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for {
		if err := readable(fd, answerTimeout); err != nil {
			return err
		}
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		done, err := acks(buf[:n], last)
		if done || err != nil {
			return err
		}
	}
}

// acks parses a datagram of acknowledgements. It returns the first error in it; done means that it acknowledges last.
func acks(b []byte, last uint32) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, fmt.Errorf("netlink message of %d bytes in %d", size, len(b))
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && size >= unix.NLMSG_HDRLEN+4 {
			if en := int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])); en != 0 {
				return false, unix.Errno(-en)
			}
			done = done || binary.NativeEndian.Uint32(b[8:]) == last
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return done, nil
}
