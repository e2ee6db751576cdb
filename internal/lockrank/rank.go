package lockrank

// Rank is a lock's place in the order, from the outermost to the innermost.
type Rank int

// The order. The comment says what the lock guards, and what is called while it is held.
const (
	GatewayHost           Rank = iota + 1 // gateway.host.mu: the addresses and rules of the data plane are being replaced
	GatewayPortsChange                    // gateway.ports.change: ports are being added or removed
	GatewayPorts                          // gateway.ports.mu: the list; a port is being connected to the forwarder
	GatewayForwardsChange                 // gateway.loopbackForwards.change: forwards are being added or removed
	GatewayForwards                       // gateway.loopbackForwards.mu: the list; a relay is being started, a port closed
	SpinMember                            // spin.Member.mu: one handler run, which takes the locks of a datapath
	SplicePath                            // splicetcp.Path.mu: requests and joined connections
	LoopbackRelay                         // loopback.Relay.mu: ports, clients and flows
	UDPTable                              // udp table.mu: flows and sockets
	StackPath                             // tcp.Path.mu: connections
	InboundDialler                        // inbound.Dialler.mu: clients that wait for a connect
	SpliceLoop                            // splice.Loop.mu: watched descriptors and pairs
	Attempts                              // forwarder.Attempts.mu: attempts by destination
	Breaker                               // breaker.Breaker.mu: failures in a row
	FlowTable                             // flow.Table.mu: live flows and watchers
	SpinGroup                             // spin.Group.mu: members
	UDPSend                               // udp socket.sendMu: options and the packets that need them
	UDPReceive                            // udp socket.recvMu: the descriptor is open

	numRanks
)

var names = [numRanks]string{"unranked", "gateway.host.mu", "gateway.ports.change", "gateway.ports.mu", "gateway.loopbackForwards.change", "gateway.loopbackForwards.mu",
	"spin.Member.mu", "splicetcp.Path.mu", "loopback.Relay.mu", "udp.table.mu", "tcp.Path.mu", "inbound.Dialler.mu", "splice.Loop.mu",
	"forwarder.Attempts.mu", "breaker.Breaker.mu", "flow.Table.mu", "spin.Group.mu", "udp.socket.sendMu", "udp.socket.recvMu"}

func (r Rank) String() string { return names[r] }
