// Package archtest holds the architecture as tests: which package may import which, what no product code does, and how long a
// file may be. It reads the source tree and runs nothing.
//
//	cmd -> rootlessnet -> sandbox -> {plan, api, gateway, userns}
//	gateway -> {dns, netns, forwarder and its datapaths -> {policy, flow, splice, stack -> tap}}
//	userns -> netns
//
// imports_test.go has the complete list. Only stack imports gVisor, stack never imports forwarder, and nothing imports cmd.
package archtest
