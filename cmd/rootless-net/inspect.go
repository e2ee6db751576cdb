package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/api"
)

// network has the fields that docker network inspect prints (moby/api/types/network), followed by fields of our own. Name and
// ID are those of the sandbox, whose private network it is.
type network struct {
	Name       string
	ID         string `json:"Id"`
	Created    time.Time
	Scope      string
	Driver     string
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       ipam
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigFrom struct{ Network string }
	ConfigOnly bool
	Containers map[string]endpoint
	Options    map[string]string
	Labels     map[string]string

	Ports    map[string][]binding // as in docker inspect, NetworkSettings.Ports
	Counters map[string]uint64
	Sandbox  api.Sandbox
}

type ipam struct {
	Driver  string
	Options map[string]string
	Config  []ipamConfig
}

type ipamConfig struct {
	Subnet  string
	Gateway string
}

type endpoint struct {
	Name        string
	EndpointID  string
	MacAddress  string
	IPv4Address string // with the prefix length
	IPv6Address string
}

type binding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

func (p *program) inspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME [NAME...]",
		Short: "Describe sandboxes in JSON, in the form of docker network inspect",
		Args:  atLeast(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			found := []network{}
			var errs []error
			for _, ref := range refs {
				n, err := p.inspect(cmd.Context(), ref)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				found = append(found, n)
			}
			if err := p.writeJSON(found); err != nil {
				return err
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: p.completeNames,
	}
	p.addOutput(cmd, "json")
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return err
		}
		if p.output != "json" {
			return usageError{errors.New("inspect has no table: use -o json")}
		}
		return nil
	}
	return cmd
}

func (p *program) inspect(ctx context.Context, ref string) (network, error) {
	_, client, err := p.find(ref)
	if err != nil {
		return network{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	box, err := client.Inspect(ctx)
	if err != nil {
		return network{}, fmt.Errorf("%s: %w", ref, err)
	}
	stats, err := client.Stats(ctx)
	if err != nil {
		return network{}, fmt.Errorf("%s: %w", ref, err)
	}
	return describe(box, stats), nil
}

// drivers are docker's drivers of the predefined networks, by our network modes.
var drivers = map[string]string{"bridge": "bridge", "host": "host", "none": "null", "attach": "bridge"}

// describe converts a sandbox and its counters into docker's form.
func describe(box api.Sandbox, stats api.Stats) network {
	n := network{
		Name: box.Name, ID: box.ID, Created: box.Created, Scope: "local", Driver: drivers[box.Network],
		IPAM:       ipam{Driver: "default", Config: []ipamConfig{}},
		Containers: map[string]endpoint{},
		Options:    map[string]string{},
		Labels:     map[string]string{},
		Ports:      map[string][]binding{},
		Counters:   counters(stats),
		Sandbox:    box,
	}
	maps.Copy(n.Labels, box.Labels)
	if box.MTU > 0 {
		n.Options["com.docker.network.driver.mtu"] = strconv.Itoa(box.MTU)
	}
	end := endpoint{Name: box.Name, EndpointID: box.ID, MacAddress: box.MAC}
	for i, subnet := range box.Subnets {
		c := ipamConfig{Subnet: subnet.String()}
		if i < len(box.Gateways) {
			c.Gateway = box.Gateways[i].String()
		}
		n.IPAM.Config = append(n.IPAM.Config, c)
		var addr string
		if i < len(box.Addresses) {
			addr = netip.PrefixFrom(box.Addresses[i], subnet.Bits()).String()
		}
		if subnet.Addr().Is4() {
			n.EnableIPv4, end.IPv4Address = true, addr
		} else {
			n.EnableIPv6, end.IPv6Address = true, addr
		}
	}
	if box.Status != api.StatusLingering {
		n.Containers[box.ID] = end
	}
	for _, port := range box.Ports {
		n.Ports[port.Guest()] = append(n.Ports[port.Guest()], binding{port.HostIP.String(), strconv.Itoa(int(port.HostPort))})
	}
	return n
}

// counters returns all counters, those of the link included, under the prefix "link.".
func counters(s api.Stats) map[string]uint64 {
	all := map[string]uint64{
		"link.rx_bytes": s.RxBytes, "link.rx_packets": s.RxPackets, "link.rx_dropped": s.RxDropped,
		"link.tx_bytes": s.TxBytes, "link.tx_packets": s.TxPackets, "link.tx_dropped": s.TxDropped,
	}
	for name, value := range s.Counters {
		all[name] = value
	}
	return all
}
