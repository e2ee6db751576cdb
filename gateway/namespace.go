package gateway

import (
	"context"
	"os"

	"rootlessnet/netns"
	"rootlessnet/plan"
	"rootlessnet/tap"
)

// Namespace is what the gateway has the agent process do inside the sandbox's network namespace. A gateway with a link that was
// passed in as an open TAP (AdoptTAP) has none, because that namespace is not entered.
type Namespace interface {
	// InitPID is the pid of the agent process; /proc/PID/net shows the namespace.
	InitPID() int
	// LinkFD is the device that was created at the start, for its new owner.
	LinkFD() (file *os.File, kind string, result netns.LinkResult)
	// Relink replaces the addresses and routes of the uplink.
	Relink(context.Context, netns.Link) error
	// UpdateResolvConf replaces the resolv.conf that the command sees.
	UpdateResolvConf(text []byte) error
	// Listen opens sockets on the namespace's loopback interface; files and errs have an element for each port.
	Listen(ctx context.Context, proto string, ports []uint16) (files []*os.File, errs []error, err error)
	// SocketPool opens a pool of transparent sockets.
	SocketPool(context.Context, netns.PoolOptions) (*netns.Pool, error)
	// Redirect redirects the guest's TCP connections to listeners inside the namespace (TPROXY).
	Redirect(context.Context, netns.RedirectConfig) (*netns.RedirectHandles, error)
	// RedirectForwarded extends a redirect to the traffic that the namespace forwards, such as that of containers on a bridge.
	RedirectForwarded(context.Context, *netns.RedirectHandles) error
}

// Link is an open link device and what it can do.
type Link struct {
	file    *os.File
	info    tap.Info // Name and MTU are not set by NamespaceLink
	refused []netns.Refusal
}

// NamespaceLink is the device that was created inside the namespace.
func NamespaceLink(ns Namespace) Link {
	file, kind, r := ns.LinkFD()
	return Link{file: file, info: tap.Info{Kind: tap.Kind(kind), MAC: r.MAC, CSum: r.CSum, TSO: r.TSO, USO: r.USO}, refused: r.Refused}
}

// AdoptTAP is the device of a plan.Target. On an error the file remains the caller's; otherwise Connect takes it over.
func AdoptTAP(file *os.File, p *plan.Plan) (Link, error) {
	info, err := tap.Adopt(file, p.MTU)
	if err != nil {
		return Link{}, err
	}
	return Link{file: file, info: info}, nil
}
