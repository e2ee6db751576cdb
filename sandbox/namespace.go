package sandbox

import (
	"rootlessnet/gateway"
	"rootlessnet/userns"
)

// namespace is the agent process as the gateway uses it.
type namespace struct{ *userns.Sandbox }

var _ gateway.Namespace = namespace{}

// UpdateResolvConf is part of gateway.Namespace.
func (n namespace) UpdateResolvConf(text []byte) error {
	return n.UpdateFiles(userns.Files{ResolvConf: text})
}
