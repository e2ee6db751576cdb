package main

import (
	"path/filepath"
	"time"

	"rootlessnet/api"
	"rootlessnet/internal/state"
)

// container has fields that docker inspect prints of a container (moby/api/types/container): those that a sandbox has.
type container struct {
	Path            string
	Args            []string
	State           containerState
	LogPath         string
	HostConfig      hostConfig
	Config          containerConfig
	NetworkSettings networkSettings
}

type containerState struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
}

type hostConfig struct {
	NetworkMode     string
	PortBindings    map[string][]binding
	AutoRemove      bool
	PublishAllPorts bool
}

type containerConfig struct {
	Hostname string
	Cmd      []string
	Labels   map[string]string
}

type networkSettings struct {
	SandboxID        string
	Ports            map[string][]binding
	endpointSettings // docker repeats those of the default network here
	Networks         map[string]endpointSettings
}

type endpointSettings struct {
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	MacAddress          string
}

// describeContainer converts a sandbox into docker's form of a container.
func describeContainer(box api.Sandbox, ports map[string][]binding) container {
	running := box.Status == api.StatusRunning
	c := container{
		Args:       []string{},
		State:      containerState{Status: string(box.Status), Running: running, Error: box.Error, StartedAt: box.Started, FinishedAt: box.Finished},
		HostConfig: hostConfig{NetworkMode: box.Network, PortBindings: ports, AutoRemove: !box.Keep, PublishAllPorts: box.PublishAll},
		Config:     containerConfig{Hostname: box.Hostname, Cmd: box.Command, Labels: box.Labels},
	}
	if box.Labels == nil {
		c.Config.Labels = map[string]string{}
	}
	if len(box.Command) > 0 {
		c.Path, c.Args = box.Command[0], box.Command[1:]
	}
	if running {
		c.State.Pid = box.InitPID
	}
	if box.ExitCode != nil {
		c.State.ExitCode = *box.ExitCode
	}
	if box.StateDir != "" && box.Keep {
		c.LogPath = filepath.Join(box.StateDir, state.LogFile)
	}
	end := endpointSettings{MacAddress: box.MAC}
	for i, subnet := range box.Subnets {
		if i >= len(box.Addresses) || i >= len(box.Gateways) {
			break
		}
		addr, gateway := box.Addresses[i].String(), box.Gateways[i].String()
		if subnet.Addr().Is4() {
			end.IPAddress, end.IPPrefixLen, end.Gateway = addr, subnet.Bits(), gateway
		} else {
			end.GlobalIPv6Address, end.GlobalIPv6PrefixLen, end.IPv6Gateway = addr, subnet.Bits(), gateway
		}
	}
	c.NetworkSettings = networkSettings{SandboxID: box.ID, Ports: ports, endpointSettings: end, Networks: map[string]endpointSettings{box.Network: end}}
	return c
}
