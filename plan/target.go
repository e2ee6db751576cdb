package plan

import (
	"fmt"
	"os"
)

// Target names the network namespace that Attach connects: by PID, NetNS or TAP, exactly one of them.
type Target struct {
	// PID is a process in the namespace. The sandbox ends when this process does.
	PID int
	// NetNS is the path of the namespace, such as /run/netns/NAME or /proc/PID/ns/net. The sandbox ends when the path no
	// longer exists or names another namespace.
	NetNS string
	// UserNS is the path of the user namespace to enter first. Empty means the one that owns the network namespace, unless
	// that is the caller's own.
	UserNS string
	// Outlive keeps the sandbox when the process PID or the path NetNS no longer exists. The sandbox then ends by Close or with the context.
	Outlive bool
	// TAP is the open device of a namespace that is not entered: a TAP attached with IFF_NO_PI and without IFF_MULTI_QUEUE,
	// or a SOCK_SEQPACKET socket that carries one Ethernet frame in each packet. The caller configures its interface, and the
	// sandbox ends when the device does. Attach takes the file over and closes it.
	TAP *os.File
}

// LoopbackForward forwards a port of the loopback interface inside the namespace to a port of the host's loopback. Every
// process in the namespace can use that port, and no other port is opened. The listening socket is bound to all addresses
// of lo (127.0.0.0/8 and ::1). The host's server is tried on the loopback address of the client's family first, and then on
// that of the other family.
type LoopbackForward struct {
	Proto    string // "tcp" or "udp"
	Port     uint16 // inside
	HostPort uint16
}

func (f LoopbackForward) String() string {
	return fmt.Sprintf("%d:%d/%s", f.Port, f.HostPort, f.Proto)
}

// Validate returns nil or a *UsageError.
func (f LoopbackForward) Validate() error {
	if f.Proto != "tcp" && f.Proto != "udp" || f.Port == 0 || f.HostPort == 0 {
		return usage("LoopbackForward", "invalid port: %s", f)
	}
	return nil
}
