package doctor

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// chain is a base chain of the table of a probe.
type chain struct {
	name, kind string
	hook       uint32
	priority   int32
}

// Hooks and priorities as the splice path has them (include/uapi/linux/netfilter_ipv4.h).
var (
	chainMark       = chain{"mark", "route", unix.NF_INET_LOCAL_OUT, -150}
	chainPrerouting = chain{"prerouting", "filter", unix.NF_INET_PRE_ROUTING, -150}
)

const tableName = "doctor"

// enum nft_tproxy_attributes (include/uapi/linux/netfilter/nf_tables.h)
const (
	nftaTPROXYFamily  = 1
	nftaTPROXYRegAddr = 2
	nftaTPROXYRegPort = 3
)

func newTable() nlmsg { return nft(unix.NFT_MSG_NEWTABLE, str(unix.NFTA_TABLE_NAME, tableName)) }

func newChain(c chain) nlmsg {
	return nft(unix.NFT_MSG_NEWCHAIN, str(unix.NFTA_CHAIN_TABLE, tableName), str(unix.NFTA_CHAIN_NAME, c.name),
		nested(unix.NFTA_CHAIN_HOOK, be32(unix.NFTA_HOOK_HOOKNUM, c.hook),
			be32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))),
		str(unix.NFTA_CHAIN_TYPE, c.kind))
}

func newRule(c chain, exprs ...[]byte) nlmsg {
	return nft(unix.NFT_MSG_NEWRULE, str(unix.NFTA_RULE_TABLE, tableName), str(unix.NFTA_RULE_CHAIN, c.name),
		nested(unix.NFTA_RULE_EXPRESSIONS, exprs...))
}

// tryBatch runs a transaction in the family inet, which is that of the splice path's table.
func tryBatch(msgs ...nlmsg) error { return nftBatch(unix.NFPROTO_INET, msgs...) }

func probeTables() finding {
	if err := tryBatch(newTable(), newChain(chainMark), newChain(chainPrerouting)); err != nil {
		return failed("inet table with a route and a filter chain", err)
	}
	return okf("an inet table with a route and a filter chain can be created")
}

// probeOwner creates a table that is owned by its netlink socket: no other socket can change it, and the kernel removes it when the
// socket is closed.
func probeOwner() finding {
	const tableOwner = 2 // NFT_TABLE_F_OWNER, include/uapi/linux/netfilter/nf_tables.h
	if err := tryBatch(nft(unix.NFT_MSG_NEWTABLE, str(unix.NFTA_TABLE_NAME, tableName), be32(unix.NFTA_TABLE_FLAGS, tableOwner))); err != nil {
		return failed("table with an owner", err)
	}
	return okf("a table can be owned by the socket that created it")
}

// probeSets creates sets of connections for IPv4 and IPv6, as the splice path uses them for connections that stay on the stack path,
// and rules that look up, renew and delete their elements.
func probeSets() finding {
	const (
		setFlags  = 0x10 | 0x20 | 0x80 // NFT_SET_TIMEOUT, NFT_SET_EVAL, NFT_SET_CONCAT
		opUpdate  = 1                  // NFT_DYNSET_OP_UPDATE
		opDelete  = 2                  // NFT_DYNSET_OP_DELETE
		timeoutMS = 60_000
	)
	for _, v := range []struct {
		set     string
		addrLen int
	}{{"four", 4}, {"six", 16}} {
		keyLen := 2*v.addrLen + 2*4 // two addresses and two ports, each padded to four bytes
		set := nft(unix.NFT_MSG_NEWSET, str(unix.NFTA_SET_TABLE, tableName), str(unix.NFTA_SET_NAME, v.set), be32(unix.NFTA_SET_FLAGS, setFlags),
			be32(unix.NFTA_SET_KEY_TYPE, 0), be32(unix.NFTA_SET_KEY_LEN, uint32(keyLen)), be32(unix.NFTA_SET_ID, 1), be64(unix.NFTA_SET_TIMEOUT, timeoutMS),
			nested(unix.NFTA_SET_DESC, be32(unix.NFTA_SET_DESC_SIZE, 1024), concatenation(v.addrLen, v.addrLen, 2, 2)))
		rules := []nlmsg{newTable(), newChain(chainPrerouting), set}
		for _, op := range []uint32{opUpdate, opDelete} {
			rules = append(rules, newRule(chainPrerouting, append(key(keyLen),
				expr("dynset", str(unix.NFTA_DYNSET_SET_NAME, v.set), be32(unix.NFTA_DYNSET_SET_ID, 1), be32(unix.NFTA_DYNSET_OP, op),
					be32(unix.NFTA_DYNSET_SREG_KEY, unix.NFT_REG32_00)))...))
		}
		rules = append(rules, newRule(chainPrerouting, append(key(keyLen),
			expr("lookup", str(unix.NFTA_LOOKUP_SET, v.set), be32(unix.NFTA_LOOKUP_SET_ID, 1), be32(unix.NFTA_LOOKUP_SREG, unix.NFT_REG32_00)))...))
		if err := tryBatch(rules...); err != nil {
			return failed(fmt.Sprintf("set of connections with addresses of %d bytes", v.addrLen), err)
		}
	}
	return okf("sets of connections can be created, and rules that look up, renew and delete their elements")
}

// key returns expressions that load n bytes into registers of four bytes each.
func key(n int) (exprs [][]byte) {
	for i := range n / 4 {
		exprs = append(exprs, expr("immediate", be32(unix.NFTA_IMMEDIATE_DREG, uint32(unix.NFT_REG32_00+i)),
			nested(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VALUE, make([]byte, 4)))))
	}
	return exprs
}

// concatenation describes the lengths in bytes of the fields of a key.
func concatenation(lengths ...int) []byte {
	const descConcat, listElem, fieldLen = 2, 1, 1 // NFTA_SET_DESC_CONCAT, NFTA_LIST_ELEM, NFTA_SET_FIELD_LEN
	var fields [][]byte
	for _, n := range lengths {
		fields = append(fields, nested(listElem, be32(fieldLen, uint32(n))))
	}
	return nested(descConcat, fields...)
}

func probeTPROXY() finding {
	for _, fam := range []struct {
		proto uint32
		addr  []byte
	}{{unix.NFPROTO_IPV4, []byte{192, 0, 0, 8}}, {unix.NFPROTO_IPV6, []byte{0: 1, 15: 1}}} {
		port := binary.BigEndian.AppendUint16(nil, 1)
		value := func(reg uint32, b []byte) []byte {
			return expr("immediate", be32(unix.NFTA_IMMEDIATE_DREG, reg), nested(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VALUE, b)))
		}
		err := tryBatch(newTable(), newChain(chainPrerouting), newRule(chainPrerouting,
			value(unix.NFT_REG_1, fam.addr), value(unix.NFT_REG_2, port),
			expr("tproxy", be32(nftaTPROXYFamily, fam.proto), be32(nftaTPROXYRegAddr, unix.NFT_REG_1), be32(nftaTPROXYRegPort, unix.NFT_REG_2))))
		if err != nil {
			return failed("rule with tproxy", err)
		}
	}
	return okf("rules with tproxy can be loaded")
}

// enum nft_socket_attributes and nft_socket_keys (include/uapi/linux/netfilter/nf_tables.h)
const (
	nftaSocketKey        = 1
	nftaSocketDReg       = 2
	nftSocketTransparent = 0
)

// probeForward loads the rules that the splice path needs for forwarded traffic in addition: connection tracking, NAT, connection
// marks and socket lookup.
func probeForward() finding {
	nat := chain{"nat", "nat", unix.NF_INET_POST_ROUTING, 101}
	input := chain{"input", "filter", unix.NF_INET_LOCAL_IN, 101}
	ct := func(key uint32, reg int) []byte {
		return expr("ct", be32(unix.NFTA_CT_KEY, key), be32(uint16(reg), unix.NFT_REG_1))
	}
	err := tryBatch(newTable(), newChain(nat), newChain(input), newChain(chainPrerouting),
		newRule(chainPrerouting, expr("notrack")),
		newRule(input, expr("socket", be32(nftaSocketKey, nftSocketTransparent), be32(nftaSocketDReg, unix.NFT_REG_1))),
		newRule(input, ct(unix.NFT_CT_STATUS, unix.NFTA_CT_DREG), ct(unix.NFT_CT_DIRECTION, unix.NFTA_CT_DREG),
			ct(unix.NFT_CT_MARK, unix.NFTA_CT_DREG), ct(unix.NFT_CT_MARK, unix.NFTA_CT_SREG)))
	if err != nil {
		return failed("rules with ct, socket and notrack beside a nat chain", err)
	}
	return okf("forwarded connections can be tracked and redirected to a socket")
}
