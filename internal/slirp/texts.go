package slirp

import "fmt"

// Usage is what --help prints. Podman searches it for the names of options, and uses those that it finds.
const Usage = `Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
User-mode networking for a network namespace, without privileges. (rootlessnet)

What is connected
  -c, --configure            bring up lo and the TAP device: address, MTU, default route
      --netns-type=TYPE      what the first operand is: pid (default), path or tapfd
      --userns-path=PATH     the user namespace to join first
      --target-type=TYPE     netns (default), or bess: frames over the unix socket PATH
      --macaddress=MAC       the TAP device's hardware address (only with -c)
  -m, --mtu=MTU              1 to 65521 (default 1500)

Addresses
      --cidr=CIDR            IPv4 network (default 10.0.2.0/24); the gateway is its .2,
                             the name server its .3, the guest its .100
  -6, --enable-ipv6          IPv6 too, as fd00::/64
      --outbound-addr=ADDR   source IPv4 address of connections to the outside, or interface with it
      --outbound-addr6=ADDR  the same for IPv6

What the guest may do
      --disable-host-loopback
                             no connection to the host's loopback through the gateway
      --disable-dns          no name server
      --enable-sandbox       drop all capabilities, and filter system calls
      --enable-seccomp       the same as --enable-sandbox

Process
  -e, --exit-fd=FD           exit at any event on FD
  -r, --ready-fd=FD          write 1 to FD and close it when the network is up
  -a, --api-socket=PATH      serve requests for port forwarding on a unix socket
  -h, --help                 show this text
  -v, --version              show the version
`

// Version is what --version prints. Callers read from SLIRP_CONFIG_VERSION_MAX which options they may use: from 3 on --disable-dns
// and --outbound-addr.
func Version(version string) string {
	return fmt.Sprintf("slirp4netns version 1.3.0\nengine: rootlessnet %s\nlibslirp: none\nSLIRP_CONFIG_VERSION_MAX: 4\nlibseccomp: none\n", version)
}
