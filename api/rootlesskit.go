package api

import "net/netip"

// The wire types of RootlessKit's REST API. RootlessKit defines their names and fields (pkg/api and pkg/port of
// github.com/rootless-containers/rootlesskit). In its terms the parent is the host and the child is the guest.

// rootlessKitVersion is the version of RootlessKit's API that is implemented.
const rootlessKitVersion = "1.1.1"

// RootlessKitInfo is the answer to GET /v1/info.
type RootlessKitInfo struct {
	APIVersion    string             `json:"apiVersion"`
	Version       string             `json:"version"`
	StateDir      string             `json:"stateDir"`
	ChildPID      int                `json:"childPID"`
	NetworkDriver RootlessKitNetwork `json:"networkDriver"`
	PortDriver    RootlessKitDriver  `json:"portDriver"`
}

// RootlessKitNetwork describes the network of the guest.
type RootlessKitNetwork struct {
	Driver         string       `json:"driver"`
	DNS            []netip.Addr `json:"dns,omitempty"`
	ChildIP        netip.Addr   `json:"childIP,omitzero"` // the guest's first IPv4 address
	DynamicChildIP bool         `json:"dynamicChildIP"`
}

// RootlessKitDriver describes how ports are published.
type RootlessKitDriver struct {
	Driver string   `json:"driver"`
	Protos []string `json:"protos"` // values of RootlessKitPortSpec.Proto that are supported
	// DisallowLoopbackChildIP is set if ChildIP cannot be a loopback address: the guest's loopback is not on the link.
	DisallowLoopbackChildIP bool `json:"disallowLoopbackChildIP"`
}

// RootlessKitPortSpec is the body of POST /v1/ports.
type RootlessKitPortSpec struct {
	Proto      string `json:"proto"`              // "tcp" or "udp", alone or followed by "4" or "6"
	ParentIP   string `json:"parentIP,omitempty"` // empty: every address of both families, or of the one that Proto names
	ParentPort int    `json:"parentPort"`
	ChildIP    string `json:"childIP,omitempty"` // empty: the guest's own address
	ChildPort  int    `json:"childPort"`
}

// RootlessKitPortStatus is a published port. POST /v1/ports answers with one, GET /v1/ports with a list.
type RootlessKitPortStatus struct {
	ID   int                 `json:"id"` // Port.ID
	Spec RootlessKitPortSpec `json:"spec"`
}
