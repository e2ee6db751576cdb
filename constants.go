package rootlessnet

import (
	"rootlessnet/plan"
	"rootlessnet/sandbox"
)

// Names of the network modes (Config.Network). The fourth mode is ContainerPrefix followed by the name or id of a
// running sandbox.
const (
	NetworkBridge   = plan.NetworkBridge
	NetworkHost     = plan.NetworkHost
	NetworkNone     = plan.NetworkNone
	ContainerPrefix = plan.ContainerPrefix
)

// Names of the id mappings (Config.UserNS).
const (
	UserNSKeepID  = plan.UserNSKeepID
	UserNSRoot    = plan.UserNSRoot
	UserNSAuto    = plan.UserNSAuto
	DefaultUserNS = plan.DefaultUserNS
)

// Values of Config.Datapath.
const (
	DatapathAuto   = plan.DatapathAuto
	DatapathStack  = plan.DatapathStack
	DatapathSplice = plan.DatapathSplice
)

// Names of the link kinds (Config.Link).
const (
	LinkAuto     = plan.LinkAuto
	LinkTAP      = plan.LinkTAP
	LinkTAPPlain = plan.LinkTAPPlain
	LinkPacket   = plan.LinkPacket
)

// Limits and defaults of a sandbox's network, in bytes without the Ethernet header.
const (
	DefaultMTU = plan.DefaultMTU
	// DefaultTCPBuffers and MinTCPBuffers are for Config.TCPBuffers.
	DefaultTCPBuffers = plan.DefaultTCPBuffers
	MinTCPBuffers     = plan.MinTCPBuffers
	MinMTU            = plan.MinMTU
	MinMTU6           = plan.MinMTU6
	MaxMTU            = plan.MaxMTU
)

// HostGatewayName in Config.ExtraHosts is replaced by the gateway's address.
const HostGatewayName = plan.HostGatewayName

// Exit codes of Run that are not the command's own; the meanings are those of docker run.
const (
	ExitFailure    = sandbox.ExitFailure
	ExitCannotExec = sandbox.ExitCannotExec
	ExitNotFound   = sandbox.ExitNotFound
	ExitSignalBase = sandbox.ExitSignalBase
)

// Values of SpecialTarget.
const (
	ToRefuse   = plan.ToRefuse
	ToLoopback = plan.ToLoopback
	ToHost     = plan.ToHost
	ToNetwork  = plan.ToNetwork
	ToNoRoute  = plan.ToNoRoute
	ToDrop     = plan.ToDrop
)

// Former names of values of SpecialTarget.
const (
	// Deprecated: use ToRefuse.
	ToNothing = plan.ToRefuse
	// Deprecated: use ToNoRoute.
	ToNowhere = plan.ToNoRoute
	// Deprecated: use ToDrop.
	ToSilence = plan.ToDrop
)
