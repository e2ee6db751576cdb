package rootlessport

import (
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"rootlessnet/netns"
)

// uplinkNamespaces are patterns of the paths where Podman keeps the namespace with the bridges of its networks, relative to the
// directory of the containers' namespaces: up to version 4 in that directory, from version 5 in a directory of its own.
var uplinkNamespaces = []string{"rootless-netns*", "../containers/networks/rootless-netns/rootless-netns"}

// findEngine returns the control socket of the helper that connects the namespace at path, or that connects the namespace in which
// a veth of it has its peer; "" if there is none.
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

// hasVethTo reports whether a veth of the namespace at path has its peer in the namespace at uplink. Several instances of Podman of
// one user may each have such a namespace.
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

// hasPeerIn reports whether a veth of the calling thread's namespace has its peer in the namespace ns: the kernel numbers the
// namespaces that have peers of its links (rtnetlink, RTM_GETNSID).
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
