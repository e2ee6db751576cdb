package pasta

import "fmt"

// Version is what --version prints.
func Version(version string) string {
	return fmt.Sprintf("pasta 2026_07_16 (rootlessnet %s)\n", version)
}

// Usage is what --help prints.
const Usage = `Usage: pasta [OPTION]... [COMMAND [ARG]...]
       pasta [OPTION]... PID
       pasta [OPTION]... --netns PATH|NAME
Connects a network namespace to the host's network, with the host's own addresses. Without PID or
--netns a command, or $SHELL, is run in namespaces of its own. (rootlessnet)

What is connected
      --netns PATH|NAME      network namespace
      --userns PATH          user namespace to join first
      --netns-only           join no user namespace (implied by --netns without --userns)
      --no-netns-quit        keep running when the path of the network namespace is deleted
  -I, --ns-ifname NAME       name of the interface (default: that of the host's interface)
      --config-net           set up addresses and routes in the namespace
      --no-copy-routes       with --config-net: add a default route only
      --no-copy-addrs        with --config-net: add one address of each family only
      --ns-mac-addr ADDR     hardware address of the interface
  -m, --mtu MTU              0 to 65520 (default 65520; 0: that of a new interface)

Addresses
  -i, --interface NAME       interface of the host whose addresses and routes are copied (default: that
                             of the default route)
  -a, --address ADDR[/LEN]   address in the namespace, for each family
  -n, --netmask MASK         of the IPv4 address
  -g, --gateway ADDR         gateway, for each family
  -M, --mac-addr ADDR        hardware address of the gateway
  -o, --outbound ADDR        source address of connections to the outside
      --outbound-if4 NAME, --outbound-if6 NAME
                             interface they leave by, and are copied from without -i
  -4, --ipv4-only            no IPv6
  -6, --ipv6-only            no IPv4
      --no-map-gw            the same as --map-host-loopback none
      --map-host-loopback ADDR
                             address that is translated to the host's loopback (default: the gateway's)
      --map-guest-addr ADDR  address that is translated to the host's own address
      --host-lo-to-ns-lo     forward connections from the host's loopback to the namespace's loopback
      --no-splice            forward all connections over the interface

Names
  -D, --dns ADDR             name server to announce, or none
  -S, --search LIST          search domains to announce, or none
      --dns-forward ADDR     address in the namespace that forwards DNS queries
      --dns-host ADDR        server to forward them to (default: those of resolv.conf)
  -H, --hostname NAME, --fqdn NAME
      --dhcp-dns, --dhcp-search
                             announce name servers and search domains by DHCP, DHCPv6 and router
                             advertisements; --no-dhcp-dns and --no-dhcp-search are the default

Protocols to disable
      --no-tcp, --no-udp, --no-icmp, --no-dhcp, --no-dhcpv6, --no-ra, --no-ndp

Ports. SPEC is none, or [[ADDR|*][%IF]/]PORTS. PORTS is a list of FIRST[-LAST][:TO[-LAST]], ~FIRST[-LAST] to exclude,
all (every port that is not ephemeral), and auto: of the other items, the ports whose target a program listens on
  -t, --tcp-ports SPEC       from the host to the namespace (default: auto)
  -u, --udp-ports SPEC
  -T, --tcp-ns SPEC          from the namespace's loopback to the host's, without ADDR and IF (default: auto)
  -U, --udp-ns SPEC

Running
  -f, --foreground           stay in the foreground
  -P, --pid FILE             file for the process id
  -c, --control PATH         control socket
  -p, --pcap FILE            write every frame to a file
  -l, --log-file FILE        log to a file
      --log-size BYTES       maximum size of the log file (default 1048576)
  -e, --stderr               log to standard error
  -q, --quiet, -d, --debug, --trace
  -h, --help, --version
`
