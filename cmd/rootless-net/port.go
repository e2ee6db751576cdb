package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"rootlessnet"
	"rootlessnet/api"
)

func (p *program) portCommand() *cobra.Command {
	list := func(use, short string) *cobra.Command {
		cmd := &cobra.Command{
			Use:   use,
			Short: short,
			Args:  atLeast(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) > 2 {
					return usageError{fmt.Errorf("%q requires at least 1 and at most 2 arguments.", cmd.CommandPath())}
				}
				ports, err := call(cmd.Context(), p, args[0], (*api.Client).Ports)
				if err != nil {
					return err
				}
				if len(args) == 1 {
					return p.writePorts(ports)
				}
				return p.writePort(args[0], ports, args[1])
			},
			ValidArgsFunction: p.completeNames,
		}
		p.addOutput(cmd, "table")
		return cmd
	}
	cmd := list("port NAME [PORT[/PROTO]]", "List, publish and close ports of a running sandbox")
	cmd.Long = `List the published ports of a running sandbox, or where one of its ports is published.

A sandbox with the name of a subcommand is listed by "port ls NAME".`
	cmd.AddCommand(list("ls NAME [PORT[/PROTO]]", "List published ports"),
		p.portChange("add", "Publish further ports, in the grammar of rootless-run -p", (*api.Client).AddPorts),
		p.portChange("rm", "Close published ports; what a SPEC leaves out matches anything, and a sole port is that inside or on the host", (*api.Client).RemovePorts))
	return cmd
}

// writePort prints where one port inside is published, as docker port does.
func (p *program) writePort(ref string, ports []api.Port, port string) error {
	found, name, err := boundPort(ports, port)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("no public port '%s' published for %s", name, ref)
	}
	if p.output == "json" {
		return p.writeJSON(found)
	}
	for _, addr := range found {
		if _, err := fmt.Fprintln(p.stdout, addr); err != nil {
			return err
		}
	}
	return nil
}

// portChange returns a command that sends one request for each SPEC.
func (p *program) portChange(name, short string, change func(*api.Client, context.Context, string) ([]api.Port, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " NAME SPEC [SPEC...]",
		Short: short,
		Args:  atLeast(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			specs := args[1:]
			// All specs are checked before the first port is changed.
			for _, spec := range specs {
				if _, err := rootlessnet.ParsePortSpec(spec); err != nil {
					return usageError{fmt.Errorf("invalid port spec %q: %w", spec, err)}
				}
			}
			_, client, err := p.find(args[0])
			if err != nil {
				return err
			}
			defer client.Close()
			changed := []api.Port{}
			var failure error
			for _, spec := range specs {
				var ports []api.Port
				if ports, failure = change(client, cmd.Context(), spec); failure != nil {
					break
				}
				changed = append(changed, ports...)
			}
			// The ports that were changed before a failure are printed, too.
			if failure != nil && len(changed) == 0 {
				return failure
			}
			if err := p.writePorts(changed); err != nil {
				return err
			}
			return failure
		},
		ValidArgsFunction: p.completeNames,
	}
	p.addOutput(cmd, "table")
	return cmd
}

// writePorts prints ports in the form of docker port.
func (p *program) writePorts(ports []api.Port) error {
	if p.output == "json" {
		return p.writeJSON(ports)
	}
	for _, port := range ports {
		if _, err := fmt.Fprintf(p.stdout, "%s -> %s\n", port.Guest(), port.Host()); err != nil {
			return err
		}
	}
	return nil
}
