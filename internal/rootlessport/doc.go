// Package rootlessport is Podman's port helper: it holds the published ports of one container for as long as Podman says.
//
// # Protocol
//
// Podman starts it without arguments and writes one JSON document to its standard input (Config). When every port is
// open it writes "1" to the ready descriptor; what goes wrong before is said on standard output, and the exit status is 1.
// It ends at the end of file of the exit descriptor. With RootlessCNI it also listens on a unix socket at
// TmpDir/rp/CONTAINER: a packet holds a JSON string, the container's new address, and is answered with "OK".
//
// # Ways in
//
//	engine  the network namespace is connected by a helper of ours (slirp4netns): it is asked over its control
//	        socket to publish the ports. When that helper ends, the one that follows it is asked.
//	direct  TCP, otherwise: a transparent socket of the container's own namespace has the client's address and connects
//	        to the server, and splice(2) moves what the two sides say. Nothing else is on the way: no bridge, no helper.
//	        What the server answers finds back by a mark (netns.OpenPoolAt). A client who hears nothing is tried by a plain
//	        socket, too, which is the original's way: rules in the container may lead the mark astray.
//	bridge  UDP, where a veth of the namespace leads to one that a helper of ours connects: Podman's bridges. That
//	        helper is asked, as above.
//	relay   whatever is left. Clients are continued by sockets made inside the namespace, so that a server sees the
//	        address that the namespace has towards the container.
//
// But for relay, a server in the container sees the real address of its client. Clients for whom that is impossible (on
// the host's loopback, or of the other family) are shown as the container's gateway.
//
// # Limits
//
// TCP and UDP. A UDP server of a container in several networks must answer from the address it was asked at, for the real
// client is far away: one with a wildcard socket may be heard by relay alone. Relayed UDP flows end after udpIdle, and there are
// at most maxFlows of them for a port. Rules in the container that select by interface see clients on lo.
package rootlessport
