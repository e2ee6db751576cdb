package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strconv"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/api"
	"rootlessnet/internal/state"
)

// network has the fields that docker network inspect prints (moby/api/types/network), followed by fields of our own. Name and
// ID are those of the sandbox, whose private network it is. The fields of docker container inspect (container) are there as well.
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

	container
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
	var text string
	cmd := &cobra.Command{
		Use:   "inspect [flags] NAME [NAME...]",
		Short: "Describe sandboxes in JSON, in the form of docker network inspect and docker inspect",
		Args:  atLeast(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			show := func(found []network) error { return p.writeJSON(found) }
			if text != "" && text != "json" {
				t, err := parseTemplate(text)
				if err != nil {
					return err
				}
				show = func(found []network) error { return printInspected(p.stdout, t, found) }
			}
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
			if err := show(found); err != nil {
				return err
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: p.completeAll,
	}
	p.addOutput(cmd, "json")
	cmd.Flags().StringVarP(&text, "format", "f", "", "\"json\", or a Go `template` for one sandbox, with the names of the JSON output: {{.State.ExitCode}}")
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

// printInspected prints each sandbox by a template. The names in the template are those of the JSON output, as docker accepts them.
func printInspected(out io.Writer, t *template.Template, found []network) error {
	t = t.Option("missingkey=error")
	for _, n := range found {
		text, err := json.Marshal(n)
		if err != nil {
			return err
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber() // a float64 would print large numbers with an exponent
		var values any
		if err := d.Decode(&values); err != nil {
			return err
		}
		if err := printRow(out, t, values); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) inspect(ctx context.Context, ref string) (network, error) {
	dir, r, err := p.findAny(ref)
	if err != nil {
		return network{}, err
	}
	if r.Status == state.Exited {
		return describe(endedBox(dir, r), api.Stats{}), nil
	}
	client := api.NewClient(dir.SocketPath(r))
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
	if box.Status != api.StatusLingering && box.Status != api.StatusExited {
		n.Containers[box.ID] = end
	}
	for _, port := range box.Ports {
		n.Ports[port.Guest()] = append(n.Ports[port.Guest()], binding{port.HostIP.String(), strconv.Itoa(int(port.HostPort))})
	}
	n.container = describeContainer(box, n.Ports)
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
