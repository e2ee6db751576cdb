// Package rootlessport implements Podman's port helper, which keeps the published ports of one container open until Podman ends it.
//
// # Protocol
//
// Podman starts it without arguments and writes one JSON document to its standard input (Config). When every port is open it
// writes "1" to the ready descriptor; an error before that goes to standard output, with exit status 1. It ends at the end of
// file of the exit descriptor. With RootlessCNI it also listens on a unix socket at TmpDir/rp/CONTAINER: a packet holds a JSON
// string, the container's new address, and is answered with "OK".
//
// # Datapaths into the container
//
//	engine  if one of our helpers (slirp4netns) connects the network namespace: that helper publishes the ports, on request over
//	        its control socket. When it ends, its successor publishes them.
//	direct  TCP, otherwise: a transparent socket of the container's namespace (netns.OpenPoolAt) is bound to the client's
//	        address and connects to the server; splice(2) moves the data between it and the client's socket, without a bridge
//	        or helper in between. The server's answers are routed back by a firewall mark. If a transparent socket gets no
//	        answer, a plain one is tried as well, which is what the original program uses: rules in the container may route
//	        the mark elsewhere.
//	bridge  UDP, if a veth of the namespace has its peer in a namespace that one of our helpers connects, as with Podman's
//	        bridges: that helper publishes the ports, as with engine.
//	relay   everything else. Plain sockets, opened on a thread in the namespace (netns.Thread), connect to the server, which
//	        sees the address that the namespace has towards the container.
//
// On all but relay, a server in the container sees its client's address. A client for which that is impossible (on the host's
// loopback, or of the other address family) appears with the address of the container's gateway.
//
// # Goroutines and locks
//
// Helper owns one datapath or two, the thread of relay and the address socket, and Helper.Close ends them. relay has a goroutine for
// each socket of the host, three for each TCP connection and one for each UDP flow; engine and the address socket have one each;
// packages inbound and splice serve the listeners and connections of direct.
//
// The locks are direct.mu, engine.change, relay.mu, udpFlows.mu and addressSocket.mu. relay.mu is taken while udpFlows.mu
// is held; no other two are held together.
//
// # Limits
//
// TCP and UDP only. A UDP server of a container in several networks must answer from the address that the request was sent to,
// because the client is on another host; a server with a wildcard socket may be reachable through relay only. Relayed UDP flows end
// after udpIdle, and a port has at most maxFlows of them. Rules in the container that match the input interface see clients on lo.
package rootlessport
