package rootlessport

import (
	"fmt"
	"log/slog"
	"net/netip"
)

// Helper holds the ports of one container.
type Helper struct {
	way    way
	minter *minter // of the relay; nil with an engine
	socket *addressSocket
}

// way is one of the two ways in.
type way interface {
	setChild(netip.Addr) error
	close()
}

// Start opens every port and listens for the container's new addresses.
func Start(c *Config, find Finder, log *slog.Logger) (h *Helper, err error) {
	ports, err := c.Ports()
	if err != nil {
		return nil, err
	}
	child, err := c.Child()
	if err != nil {
		return nil, err
	}
	if _, err := NamespaceInode(c.NetNSPath); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	h = new(Helper)
	locate := func() string { return findEngine(c.NetNSPath, find) }
	if socket := locate(); socket != "" {
		if h.way, err = newEngine(locate, socket, ports, child, log); err != nil {
			return nil, err
		}
	} else {
		if h.minter, err = newMinter(c.NetNSPath); err != nil {
			return nil, err
		}
		r := newRelay(h.minter, child, log)
		h.way = r
		if err := r.publish(ports); err != nil {
			h.Close()
			return nil, err
		}
	}
	if path := c.Socket(); path != "" {
		if h.socket, err = listenAddress(path, h.way.setChild, log); err != nil {
			h.Close()
			return nil, err
		}
	}
	return h, nil
}

// Close closes every port and connection, and waits until nothing is left.
func (h *Helper) Close() {
	if h.socket != nil {
		h.socket.close()
	}
	h.way.close()
	if h.minter != nil {
		h.minter.close()
	}
}
