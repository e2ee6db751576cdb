package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"rootlessnet/internal/doctor"
)

// errDoctor ends the command with exit status 1. The report, which is printed before it, has the reason.
var errDoctor = errors.New("something required does not work on this machine")

func newDoctorCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that sandboxes need of this machine, and print how to repair what does not work",
		Long: `Check everything that sandboxes need of this machine, as the calling user, in namespaces that are made for it.

The result of a check is ok, missing (the kernel or the system does not have it), denied (this user may not use it) or
untried (a check that it depends on has failed). The report also says what does not work without it, and which command
repairs it. Nothing is changed.

Exit status: 0 if everything that is required works, 1 otherwise. Optional checks only warn.`,
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
