package doctor

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A chain of the test's table.
type chain struct {
	name, kind string
	hook       uint32
	priority   int32
}

// Hooks and priorities as the splice path has them (include/uapi/linux/netfilter_ipv4.h).
var (
	chainOutput     = chain{"output", "filter", unix.NF_INET_LOCAL_OUT, 0}
	chainMark       = chain{"mark", "route", unix.NF_INET_LOCAL_OUT, -150}
	chainPrerouting = chain{"prerouting", "filter", unix.NF_INET_PRE_ROUTING, -150}
	chainNAT        = chain{"dstnat", "nat", unix.NF_INET_PRE_ROUTING, -100}
)

const tableName = "doctor"

// enum nft_tproxy_attributes (include/uapi/linux/netfilter/nf_tables.h)
const (
	nftaTPROXYFamily  = 1
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

// tryRule loads a rule into a chain of a new table, in each of the address families.
func tryRule(c chain, families []uint8, exprs func(family uint8) [][]byte) error {
	for _, fam := range families {
		if err := nftBatch(fam, newTable(), newChain(c), newRule(c, exprs(fam)...)); err != nil {
			return err
		}
	}
	return nil
}

var bothFamilies = []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}

func probeTables() finding {
	for _, fam := range bothFamilies {
		if err := nftBatch(fam, newTable(), newChain(chainOutput), newChain(chainMark), newChain(chainNAT)); err != nil {
			return failed("table with filter, route and nat chains", err)
		}
	}
	return okf("a table with filter, route and nat chains can be made")
}

func probeReject() finding {
	err := tryRule(chainOutput, bothFamilies, func(uint8) [][]byte {
		return [][]byte{expr("reject", be32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST))}
	})
	if err != nil {
		return failed("rule with reject", err)
	}
	return okf("a rule with reject can be loaded")
}

func probeTPROXY() finding {
	err := tryRule(chainPrerouting, bothFamilies, func(fam uint8) [][]byte {
		port := binary.BigEndian.AppendUint16(nil, 12345)
		return [][]byte{
			expr("immediate", be32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_1),
				nested(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VALUE, port))),
			expr("tproxy", be32(nftaTPROXYFamily, uint32(fam)),
				be32(nftaTPROXYRegPort, unix.NFT_REG_1)),
		}
	})
	if err != nil {
		return failed("rule with tproxy", err)
	}
	return okf("a rule with tproxy can be loaded")
}

// probeQueueRule tries nf_tables' own queue, then the NFQUEUE target of xtables through nf_tables' compat layer: kernels
// are built with either.
func probeQueueRule() finding {
	err := tryRule(chainOutput, bothFamilies, func(uint8) [][]byte {
		return [][]byte{expr("queue", be16(unix.NFTA_QUEUE_NUM, 0))}
	})
	if err == nil {
		return okf("a rule with queue can be loaded")
	}
	// struct xt_NFQ_info is one u16; the compat layer wants it padded to 8 (XT_ALIGN).
	cerr := tryRule(chainOutput, bothFamilies, func(uint8) [][]byte {
		return [][]byte{expr("target", str(unix.NFTA_TARGET_NAME, "NFQUEUE"), be32(unix.NFTA_TARGET_REV, 0),
			attr(unix.NFTA_TARGET_INFO, make([]byte, 8)))}
	})
	if cerr != nil {
		return failed("rule with queue, or with NFQUEUE through compat", cerr)
	}
	return okf("no queue (%s), but NFQUEUE works through compat", errText(err))
}

// probeQueueSocket binds a queue.
func probeQueueSocket() finding {
	const msgConfig, cfgCmd, cmdBind = 2, 1, 1 // NFQNL_MSG_CONFIG, NFQA_CFG_CMD, NFQNL_CFG_CMD_BIND
	m := named(unix.NFNL_SUBSYS_QUEUE<<8|msgConfig, attr(cfgCmd, []byte{cmdBind, 0, 0, unix.AF_INET}))
	if err := nfRequest(m.append(nil, unix.AF_UNSPEC, unix.NLM_F_ACK, 1), 1); err != nil {
		return failed("bind a queue", err)
	}
	return okf("a queue can be bound")
}
