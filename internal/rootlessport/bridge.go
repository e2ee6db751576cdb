package rootlessport

import (
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"rootlessnet/netns"
)

// uplinkNamespaces are where Podman keeps the namespace that holds the bridges of its networks: beside those of the
// containers up to version 4, in a directory of its own from version 5.
var uplinkNamespaces = []string{"rootless-netns*", "../containers/networks/rootless-netns/rootless-netns"}

// findEngine returns the control socket of the helper that connects the namespace at path, or the namespace in which a veth of
// it has its peer; "" if there is none.
func findEngine(path string, find Finder) (socket string) {
	inode, err := NamespaceInode(path)
	if err != nil {
		return ""
	}
	if socket := find(inode); socket != "" {
		return socket
	}
	for _, pattern := range uplinkNamespaces {
		matches, err := filepath.Glob(filepath.Join(filepath.Dir(path), pattern))
		if err != nil {
			continue
		}
		for _, uplink := range matches {
			inode, err := NamespaceInode(uplink)
			if err != nil {
				continue
			}
			if socket := find(inode); socket != "" && hasVethTo(path, uplink) {
				return socket
			}
		}
	}
	return ""
}

// hasVethTo says whether a veth of the namespace at path has its peer in the namespace at uplink. Several Podmans of one user
// may each have such a namespace.
func hasVethTo(path, uplink string) bool {
	to, err := os.Open(uplink)
	if err != nil {
		return false
	}
	defer to.Close()
	is := false
	err = netns.RunAt(path, func() error {
		is = hasPeerIn(int(to.Fd()))
		return nil
	})
	return is && err == nil
}

// hasPeerIn says whether a veth of the calling thread's namespace has its peer in the namespace ns: the kernel gives a number to
// each namespace that has a peer of its links (rtnetlink, RTM_GETNSID).
func hasPeerIn(ns int) bool {
	id, err := netlink.GetNetNsIdByFd(ns)
	if err != nil || id < 0 {
		return false
	}
	links, err := netlink.LinkList()
	if err != nil {
		return false
	}
	for _, l := range links {
		if _, ok := l.(*netlink.Veth); ok && l.Attrs().NetNsID == id {
			return true
		}
	}
	return false
}
