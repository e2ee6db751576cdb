// Package rootlessport is Podman's port helper: it holds the published ports of one container for as long as Podman says.
//
// # Protocol
//
// Podman starts it without arguments and writes one JSON document to its standard input (Config). When every port is
// open it writes "1" to the ready descriptor; what goes wrong before is said on standard output, and the exit status is 1.
// It ends at the end of file of the exit descriptor. With RootlessCNI it also listens on a unix socket at
// TmpDir/rp/CONTAINER: a packet holds a JSON string, the container's new address, and is answered with "OK".
//
// # Two ways in
//
//	engine  the network namespace is connected by a helper of ours (slirp4netns): it is asked over its control
//	        socket to publish the ports, and a server in the container sees the real address of its client. When
//	        that helper ends, the one that follows it is asked.
//	relay   otherwise. Connections are accepted here and continued by sockets made inside the namespace, so that a
//	        server sees the address that the namespace has towards the container.
//
// # Limits
//
// TCP and UDP. A UDP server of a container in several networks must answer from the address it was asked at, for the real
// client is far away: one with a wildcard socket may be heard by relay alone. Relayed UDP flows end after udpIdle, and there are at most maxFlows of them for a port.
package rootlessport
