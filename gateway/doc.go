// Package gateway assembles the network of one sandbox: everything between the guest's link device and the sockets of the
// host.
//
// # Theory of operation
//
//	tap.Device <-> stack.Stack <-> tcp.Path, splicetcp.Path, udp.Path (packages below forwarder) <-> sockets of the host
//
// A [Gateway] is made from a plan.Plan, which layers.go translates into the configuration of each part; dataplane.go puts
// the parts together. With the splice path, the guest's TCP connections are redirected to listening sockets inside its own
// namespace; only their SYNs pass the stack. Beside the data plane the Gateway has the resolver (package dns), the published ports,
// the forwards from the namespace's loopback to the host's, and two goroutines that follow changes: of the host's
// resolv.conf, and of what listens inside (Plan.PublishAll).
//
// What has to be done inside the namespace (creating the redirect, opening transparent sockets, listening on lo, replacing
// files and addresses) goes through the interface [Namespace].
//
// # What it may touch
//
// It imports plan, dns, policy, tap, stack, forwarder and netns (for the types of Namespace). It does not use the lifecycle
// (package sandbox), processes and user namespaces (package userns), the control socket, or the state directory. All
// uses of the forwarder are in dataplane.go (assembly, splice path), ports_connect.go (published ports), loopback_clients.go
// and loopback_forwards.go (loopback), readdress.go, layers.go (addresses) and stats.go.
//
// # States
//
// A Gateway is bound (New: every published port listens, the kernel queues clients; there is no link), connected (Connect:
// the data plane runs), following (Follow), and closed (StopFollowing, then Close). Close may be called in any state. Ports and
// loopback forwards may be added and removed from New and Connect on, until Close.
//
// # Failure cases
//
// New fails if a port cannot be bound; nothing is bound then. Connect fails if the device or the data plane cannot be set up;
// its owner then calls Close. If the splice path cannot be set up, TCP takes the stack path, unless the plan demands the splice
// path. When the link device ends by itself, Config.OnLinkEnd is called; the Gateway stays open until its owner closes it.
//
// # Lock order
//
// ports.change, then ports.mu, then the locks of the forwarder. ports.change is held while ports are bound or closed; ports.mu
// while a port is connected.
//
// loopbackForwards.change, then loopbackForwards.mu, then the locks of the forwarder. change is held while the agent process
// in the namespace opens sockets.
//
// Neither pair is held while a lock of the other is taken. The plan in force is an atomic pointer.
package gateway
