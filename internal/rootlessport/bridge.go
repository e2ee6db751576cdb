package rootlessport

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

// findEngine returns the control socket of the helper that connects the namespace at path, or that connects the namespace in which
// a veth of it has its peer, as with the bridges of Podman's networks; "" if there is none.
func findEngine(path string, find Finder) (socket string) {
	inode, err := NamespaceInode(path)
	if err != nil {
		return ""
	}
	engines := find()
	for _, e := range engines {
		if e.NetNS == inode {
			return e.Socket
		}
	}
	_ = netns.RunAt(path, func() error {
		socket = peerEngine(engines)
		return nil
	})
	return socket
}

// peerEngine returns the control socket of the first helper in whose namespace a veth of the calling thread's namespace has its
// peer. Several instances of Podman of one user may each have such a namespace, at a path that depends on their configuration.
func peerEngine(engines []Engine) (socket string) {
	peers := peerNamespaces()
	if len(peers) == 0 {
		return ""
	}
	for _, e := range engines {
		if id, ok := e.namespaceID(); ok && peers[id] {
			return e.Socket
		}
	}
	return ""
}

// peerNamespaces returns the namespaces in which veths of the calling thread's namespace have their peers, by the numbers that the
// kernel gives them there (rtnetlink, IFLA_LINK_NETNSID).
func peerNamespaces() map[int]bool {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	peers := map[int]bool{}
	for _, l := range links {
		if _, ok := l.(*netlink.Veth); ok && l.Attrs().NetNsID >= 0 {
			peers[l.Attrs().NetNsID] = true
		}
	}
	return peers
}

// namespaceID returns the number of the helper's namespace in the calling thread's (RTM_GETNSID), if it has one there.
func (e Engine) namespaceID() (id int, ok bool) {
	if e.PID == 0 {
		return 0, false
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", e.PID))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != e.NetNS {
		return 0, false // the pid is that of another process by now
	}
	id, err = netlink.GetNetNsIdByFd(int(f.Fd()))
	return id, err == nil && id >= 0
}
