package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	"os"
)

const longHelp = `Run a command with a network of its own, without privileges.

The command gets its own user, network, mount, UTS and IPC namespaces. It can reach everything that the host can reach,
except for the host's loopback. Clients reach it through published ports (-p), and it sees their real addresses.
It keeps your uid, gid and home directory, and may bind any port and ping. To change the network inside (ip, nft), it has to
be root there: --userns root.
Without a command, $SHELL is run if standard input is a terminal.

The words are those of docker run, but there is no image: the command is a program of the host, and sees the host's files.

Exit status: that of the command; 125 if rootless-run failed, 126 if the command cannot be executed, 127 if it was not
found, 128+n if signal n ended it.`

// usage prints the usage with the flags in groups.
func usage(cmd *cobra.Command) error {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "Usage:\n  %s\n\nExamples:\n%s\n", cmd.UseLine(), cmd.Example)
	for _, group := range groups {
		set := pflag.NewFlagSet(group, pflag.ContinueOnError)
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if of := f.Annotations[groupKey]; len(of) == 1 && of[0] == group {
				set.AddFlag(f)
			}
		})
		fmt.Fprintf(w, "\n%s:\n%s", group, set.FlagUsagesWrapped(width()))
	}
	return nil
}

// width is the terminal's, 0 for another output: no line is broken then.
func width() int {
	w, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		return 0
	}
	return w
}
