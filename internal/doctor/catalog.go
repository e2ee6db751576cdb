package doctor

// Groups of the report.
const (
	groupNamespaces = "namespaces"
	groupIDs        = "user and group ids"
	groupLink       = "link"
	groupRoads      = "network"
	groupLimits     = "limits and files"
	groupSplice     = "kernel splice path"
)

// lostSplice is what all checks of the splice path have in common.
const lostSplice = "--datapath splice, the default where it can be had: TCP goes through the userspace stack (--datapath stack)"

// writableSys is for a sysctl of the sandbox's own namespace that cannot be set there.
const writableSys = "sudo mount -o remount,rw /proc/sys # it is read-only in a container"

// askFilter is the advice where every kernel in use has the thing: only a filter can have taken it away.
const askFilter = "docker run --security-opt seccomp=unconfined … # a filter of the container around us forbids it"

// catalog lists all checks in the order of the report. The fixes are those for the usual cause; a probe that knows
// better replaces them. One that begins with "no command:" says what it would take.
func catalog() []Check {
	return []Check{
		{Name: "user-namespace", Group: groupNamespaces, Level: Required,
			Lost: "everything: no sandbox can be made without privilege",
			Fix:  "sudo sysctl -w user.max_user_namespaces=28633"},
		{Name: "network-namespace", Group: groupNamespaces, Level: Required,
			Lost: "no network of a sandbox's own (--network bridge, none)",
			Fix:  "sudo sysctl -w user.max_net_namespaces=28633"},
		{Name: "mount-namespace", Group: groupNamespaces, Level: Required,
			Lost: "resolv.conf and hosts of the sandbox cannot be put in place",
			Fix:  "sudo sysctl -w user.max_mnt_namespaces=28633"},
		{Name: "uts-ipc-namespace", Group: groupNamespaces, Level: Required,
			Lost: "no host name (--hostname) and no System V IPC of the sandbox's own",
			Fix:  "sudo sysctl -w user.max_uts_namespaces=28633 user.max_ipc_namespaces=28633"},
		{Name: "pid-namespace", Group: groupNamespaces, Level: Optional,
			Lost: "--pid",
			Fix:  "sudo sysctl -w user.max_pid_namespaces=28633"},

		{Name: "newuidmap", Group: groupIDs, Level: Optional,
			Lost: "--userns auto maps only your own id; programs that change user (apt, postgres) fail inside",
			Fix:  "sudo apt-get install uidmap"},
		{Name: "subordinate-ids", Group: groupIDs, Level: Optional,
			Lost: "--userns auto maps only your own id; programs that change user (apt, postgres) fail inside",
			Fix:  "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"},

		{Name: "link", Group: groupLink, Level: Required,
			Lost: "--network bridge: nothing connects the sandbox to us",
			Fix:  "sudo modprobe tun"},
		{Name: "tun-device", Group: groupLink, Level: Optional,
			Lost: "--link tap and tap-plain; a veth pair with a packet socket takes their place",
			Fix:  "sudo chmod 0666 /dev/net/tun"},
		{Name: "tap-plain", Group: groupLink, Level: Optional,
			Lost: "--link tap-plain, the last resort of the links",
			Fix:  "sudo modprobe tun"},
		{Name: "tap-vnet-header", Group: groupLink, Level: Optional,
			Lost: "--link tap; a plain TAP costs a system call and a checksum for every 1500 bytes",
			Fix:  "sudo modprobe tun"},
		{Name: "tap-offload", Group: groupLink, Level: Optional,
			Lost: "TCP in frames of 64 KiB at any MTU: several times the speed at MTU 1500",
			Fix:  "sudo modprobe tun"},
		{Name: "tap-uso", Group: groupLink, Level: Optional,
			Lost: "UDP in trains of datagrams; each datagram is a frame of its own",
			Fix:  "no command: it came with Linux 6.2"},
		{Name: "packet-link", Group: groupLink, Level: Optional,
			Lost: "--link packet, the way when /dev/net/tun is not to be had",
			Fix:  "sudo modprobe -a veth af_packet"},
		{Name: "ipv6", Group: groupLink, Level: Optional,
			Lost: "the sandbox has IPv4 only",
			Fix:  "sudo sysctl -w net.ipv6.conf.all.disable_ipv6=0"},

		{Name: "ping-socket", Group: groupRoads, Level: Optional,
			Lost: "ping from inside to the outside; it is answered with destination unreachable",
			Fix:  `sudo sysctl -w net.ipv4.ping_group_range="0 2147483647"`},
		{Name: "low-ports", Group: groupRoads, Level: Optional,
			Lost: "publishing on host ports below net.ipv4.ip_unprivileged_port_start",
			Fix:  "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=0"},
		{Name: "icmp-errors", Group: groupRoads, Level: Optional,
			Lost: "the exact ICMP error of the host (IP_RECVERR); the sandbox sees a general one",
			Fix:  askFilter},
		{Name: "udp-segment", Group: groupRoads, Level: Optional,
			Lost: "sending a train of UDP datagrams in one system call",
			Fix:  "no command: it came with Linux 4.18"},
		{Name: "udp-gro", Group: groupRoads, Level: Optional,
			Lost: "receiving a train of UDP datagrams in one system call",
			Fix:  "no command: it came with Linux 5.0"},

		{Name: "open-files", Group: groupLimits, Level: Optional,
			Lost: "many connections at once: each takes a file descriptor",
			Fix:  "echo '* hard nofile 1048576' | sudo tee /etc/security/limits.d/90-nofile.conf # then log in again"},
		{Name: "socket-buffers", Group: groupLimits, Level: Optional,
			Lost: "bursts of UDP, and frames of a packet link, are dropped earlier than need be",
			Fix:  "sudo sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608"},
		{Name: "runtime-dir", Group: groupLimits, Level: Optional,
			Lost: "the place for control sockets; /run/user/UID is used if it is yours, else a directory in /tmp",
			Fix:  "sudo loginctl enable-linger $USER # and log in again, not through su"},
		{Name: "peer-pidfd", Group: groupLimits, Level: Optional,
			Lost: "a race-free look at who calls the control socket; it is done by process id",
			Fix:  "no command: it came with Linux 6.5"},
		{Name: "seccomp", Group: groupLimits, Level: Optional,
			Lost: "a filter of system calls around the process that handles packets",
			Fix:  "no command: the kernel is built without CONFIG_SECCOMP_FILTER"},

		{Name: "nf-tables", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "sudo modprobe nf_tables"},
		{Name: "nft-owner", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "no command: it came with Linux 5.12"},
		{Name: "nft-sets", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "no command: the kernel is older than Linux 5.6, or built without CONFIG_NF_TABLES_INET"},
		{Name: "nft-tproxy", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "sudo modprobe nft_tproxy"},
		{Name: "nft-forward", Group: groupSplice, Level: Optional,
			Lost: "the kernel splice path for containers on a bridge inside: their TCP goes through the userspace stack",
			Fix:  "sudo modprobe -a nft_ct nft_nat nft_socket"},
		{Name: "policy-routing", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "no command: the kernel is built without CONFIG_IP_MULTIPLE_TABLES"},
		{Name: "fwmark-accept", Group: groupSplice, Level: Optional, Lost: lostSplice, Fix: writableSys},
		{Name: "fwmark-reflect", Group: groupSplice, Level: Optional, Lost: lostSplice, Fix: writableSys},
		{Name: "accept-local", Group: groupSplice, Level: Optional, Lost: lostSplice, Fix: writableSys},
		{Name: "packet-socket", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "sudo modprobe af_packet"},
		{Name: "transparent-socket", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: askFilter},
		{Name: "client-address", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "no command: mend the other lines of this group first"},
		{Name: "splice", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: askFilter},
	}
}
