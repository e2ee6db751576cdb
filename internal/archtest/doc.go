// Package archtest holds the architecture as tests: who may import whom, what no product code does, and how long a
// file may be. It reads the source tree and runs nothing.
//
//	cmd -> rootlessnet -> sandbox -> {api, gateway -> {dns, forwarder -> stack -> tap}}
//
//	       sandbox -> userns -> netns, gateway -> netns
//
// plan, netns, policy and internal/* are leaves: they import nothing of ours but other internal packages. tap, userns and netns
// import no gVisor; stack never imports forwarder; nothing imports cmd.
package archtest
