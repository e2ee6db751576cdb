package doctor

// Groups of the report.
const (
	groupNamespaces = "namespaces"
	groupIDs        = "user and group ids"
	groupLink       = "link"
	groupNetwork    = "network"
	groupLimits     = "limits and files"
	groupSplice     = "kernel splice path"
)

// lostSplice is what does not work if any check of the splice path fails.
const lostSplice = "--datapath splice, the default where it works: TCP uses the userspace stack instead (--datapath stack)"

// writableSys is the fix if a sysctl of the sandbox's network namespace cannot be set.
const writableSys = "sudo mount -o remount,rw /proc/sys # it is read-only in a container"

// fixFilter is the fix for features of every supported kernel: if one is missing, a seccomp filter forbids it.
const fixFilter = "docker run --security-opt seccomp=unconfined … # a seccomp filter of the surrounding container forbids it"

// catalog lists all checks in the order of the report. A fix is for the usual cause; a probe that finds another cause replaces it.
// A fix that begins with "no command:" describes what is required instead.
func catalog() []Check {
	return []Check{
		{Name: "user-namespace", Group: groupNamespaces, Level: Required,
			Lost: "everything: no sandbox can be created without privileges",
			Fix:  "sudo sysctl -w user.max_user_namespaces=28633"},
		{Name: "network-namespace", Group: groupNamespaces, Level: Required,
			Lost: "networks of sandboxes (--network bridge, none)",
			Fix:  "sudo sysctl -w user.max_net_namespaces=28633"},
		{Name: "mount-namespace", Group: groupNamespaces, Level: Required,
			Lost: "/etc/resolv.conf and /etc/hosts of sandboxes cannot be mounted",
			Fix:  "sudo sysctl -w user.max_mnt_namespaces=28633"},
		{Name: "uts-ipc-namespace", Group: groupNamespaces, Level: Required,
			Lost: "host names (--hostname) and separate System V IPC of sandboxes",
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
			Lost: "--network bridge: there is no link between the sandbox and the supervisor",
			Fix:  "sudo modprobe tun"},
		{Name: "tun-device", Group: groupLink, Level: Optional,
			Lost: "--link tap and tap-plain; a veth pair with a packet socket is used instead",
			Fix:  "sudo chmod 0666 /dev/net/tun"},
		{Name: "tap-plain", Group: groupLink, Level: Optional,
			Lost: "--link tap-plain, which is used if no other link works",
			Fix:  "sudo modprobe tun"},
		{Name: "tap-vnet-header", Group: groupLink, Level: Optional,
			Lost: "--link tap; a plain TAP costs a system call and a checksum for every 1500 bytes",
			Fix:  "sudo modprobe tun"},
		{Name: "tap-offload", Group: groupLink, Level: Optional,
			Lost: "TCP segmentation offload (frames of 64 KiB at any MTU), which is several times as fast at MTU 1500",
			Fix:  "sudo modprobe tun"},
		{Name: "tap-uso", Group: groupLink, Level: Optional,
			Lost: "GSO batches of UDP datagrams; each datagram is a frame of its own",
			Fix:  "no command: it needs Linux 6.2"},
		{Name: "packet-link", Group: groupLink, Level: Optional,
			Lost: "--link packet, which is used if /dev/net/tun cannot be opened",
			Fix:  "sudo modprobe -a veth af_packet"},
		{Name: "ipv6", Group: groupLink, Level: Optional,
			Lost: "the sandbox has IPv4 only",
			Fix:  "sudo sysctl -w net.ipv6.conf.all.disable_ipv6=0"},

		{Name: "ping-socket", Group: groupNetwork, Level: Optional,
			Lost: "ping from inside to the outside; it is answered with destination unreachable",
			Fix:  `sudo sysctl -w net.ipv4.ping_group_range="0 2147483647"`},
		{Name: "low-ports", Group: groupNetwork, Level: Optional,
			Lost: "publishing on host ports below net.ipv4.ip_unprivileged_port_start",
			Fix:  "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=0"},
		{Name: "icmp-errors", Group: groupNetwork, Level: Optional,
			Lost: "the exact ICMP error that the host received (IP_RECVERR); the sandbox gets a general one",
			Fix:  fixFilter},
		{Name: "udp-segment", Group: groupNetwork, Level: Optional,
			Lost: "sending a GSO batch of UDP datagrams in one system call",
			Fix:  "no command: it needs Linux 4.18"},
		{Name: "udp-gro", Group: groupNetwork, Level: Optional,
			Lost: "receiving a GRO batch of UDP datagrams in one system call",
			Fix:  "no command: it needs Linux 5.0"},

		{Name: "open-files", Group: groupLimits, Level: Optional,
			Lost: "many connections at the same time: each needs file descriptors",
			Fix:  "echo '* hard nofile 1048576' | sudo tee /etc/security/limits.d/90-nofile.conf # then log in again"},
		{Name: "socket-buffers", Group: groupLimits, Level: Optional,
			Lost: "buffering of bursts: UDP datagrams, and frames of a packet link, are dropped earlier",
			Fix:  "sudo sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608"},
		{Name: "runtime-dir", Group: groupLimits, Level: Optional,
			Lost: "the directory for control sockets; /run/user/UID is used if you own it, otherwise a directory in /tmp",
			Fix:  "sudo loginctl enable-linger $USER # and log in again, not through su"},
		{Name: "peer-pidfd", Group: groupLimits, Level: Optional,
			Lost: "race-free identification of the callers of the control socket; their process id is used instead",
			Fix:  "no command: it needs Linux 6.5"},
		{Name: "seccomp", Group: groupLimits, Level: Optional,
			Lost: "the filter of system calls of the process that handles packets",
			Fix:  "no command: the kernel is built without CONFIG_SECCOMP_FILTER"},

		{Name: "nf-tables", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "sudo modprobe nf_tables"},
		{Name: "nft-owner", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "no command: it needs Linux 5.12"},
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
			Fix: fixFilter},
		{Name: "client-address", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: "no command: fix the other checks of this group first"},
		{Name: "splice", Group: groupSplice, Level: Optional, Lost: lostSplice,
			Fix: fixFilter},
	}
}
