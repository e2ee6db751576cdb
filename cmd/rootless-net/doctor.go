package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"rootlessnet/internal/doctor"
)

// errDoctor ends the command with exit status 1 after the report has said why.
var errDoctor = errors.New("something required does not work on this machine")

func newDoctorCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Try everything sandboxes need of this machine, and say how to mend what does not work",
		Long: `Try everything sandboxes need of this machine, as the user who asks, in namespaces made for it.

For each check: ok, or missing (the kernel or the system does not have it), denied (this user may not) or untried
(what it stands on failed first); what is lost without it; and the command that mends it. Nothing is changed.

Exit status: 0 when everything required works, 1 when not. Optional checks only warn.`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var write func(doctor.Report) error
			switch output {
			case "table":
				write = func(r doctor.Report) error { return r.WriteText(cmd.OutOrStdout()) }
			case "json":
				write = func(r doctor.Report) error { return r.WriteJSON(cmd.OutOrStdout()) }
			default:
				return usageError{fmt.Errorf("unknown output format %q: table or json", output)}
			}
			report := doctor.Run(cmd.Context(), doctor.Options{})
			if err := write(report); err != nil {
				return err
			}
			if !report.OK {
				return errDoctor
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "output format: table or json")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
