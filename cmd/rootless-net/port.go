package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"rootlessnet"
	"rootlessnet/api"
)

func (p *program) portCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "port",
		Short: "List, publish and close ports of a running sandbox",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%q is not a command of %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := &cobra.Command{
		Use:   "ls NAME",
		Short: "List published ports",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ports, err := call(cmd.Context(), p, args[0], (*api.Client).Ports)
			if err != nil {
				return err
			}
			return p.writePorts(ports)
		},
		ValidArgsFunction: p.completeNames,
	}
	cmd.AddCommand(list,
		p.portChange("add", "Publish further ports, in the grammar of rootless-run -p", (*api.Client).AddPorts),
		p.portChange("rm", "Close published ports; what a SPEC leaves out matches anything", (*api.Client).RemovePorts))
	p.addOutput(list, "table")
	return cmd
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
