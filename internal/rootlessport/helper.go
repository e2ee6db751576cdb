package rootlessport

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"rootlessnet/netns"
)

// Helper keeps the ports of one container open.
type Helper struct {
	datapaths []datapath
	thread    *netns.Thread  // of the relay, in the container's namespace; nil without a relay
	socket    *addressSocket // nil if Podman sends no new addresses
}

// datapath is one of direct, engine and relay.
type datapath interface {
	setChild(netip.Addr) error // changes the container's address
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
	inode, err := NamespaceInode(c.NetNSPath)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	h = new(Helper)
	made, all := h, ports // h and ports are overwritten below
	defer func() {
		if err != nil {
			made.Close()
			err = explain(err, all)
		}
	}()
	// In a namespace that one of our helpers connects, only that helper changes rules and sysctls.
	if find.socketOf(inode) == "" {
		if ports, err = h.openDirect(c.NetNSPath, ports, child, log); err != nil {
			return nil, err
		}
	}
	if len(ports) > 0 {
		if err = h.openRest(c.NetNSPath, ports, child, find, log); err != nil {
			return nil, err
		}
	}
	if path := c.Socket(); path != "" {
		if h.socket, err = listenAddress(path, h.setChild, log); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// openDirect opens the TCP ports by the datapath direct and returns the others, or all of them if it is not possible.
func (h *Helper) openDirect(path string, ports []Port, child netip.Addr, log *slog.Logger) (rest []Port, err error) {
	var tcp []Port
	for _, p := range ports {
		if p.Proto == "tcp" {
			tcp = append(tcp, p)
		} else {
			rest = append(rest, p)
		}
	}
	if len(tcp) == 0 {
		return ports, nil
	}
	d, err := newDirect(path, child, log)
	if err != nil {
		log.Warn("servers in the container do not see the addresses of their TCP clients, because transparent sockets cannot be used; the connections are relayed",
			"err", err)
		return ports, nil
	}
	h.datapaths = append(h.datapaths, d)
	return rest, publish(tcp, d.listen)
}

// openRest opens the other ports through the engine that connects the namespace, or else through the relay.
func (h *Helper) openRest(path string, ports []Port, child netip.Addr, find Finder, log *slog.Logger) error {
	locate := func() string { return findEngine(path, find) }
	if socket := locate(); socket != "" {
		e, err := newEngine(locate, socket, ports, child, log)
		if err == nil {
			h.datapaths = append(h.datapaths, e)
		}
		return err
	}
	var err error
	if h.thread, err = netns.Enter(path); err != nil {
		return err
	}
	r := newRelay(threadDialer{h.thread}, child, log)
	h.datapaths = append(h.datapaths, r)
	return publish(ports, r.listen)
}

func (h *Helper) setChild(a netip.Addr) (err error) {
	for _, d := range h.datapaths {
		err = errors.Join(err, d.setChild(a))
	}
	return err
}

// Close closes every port and connection, and waits for all goroutines.
func (h *Helper) Close() {
	if h.socket != nil {
		h.socket.close()
	}
	for _, d := range h.datapaths {
		d.close()
	}
	if h.thread != nil {
		h.thread.Close()
	}
}
