package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rootlessnet"
	"rootlessnet/internal/flagvalue"
	"rootlessnet/internal/textlog"
)

// program is rootless-run with the library and the standard streams as parameters, so that tests can replace them.
type program struct {
	run                   func(context.Context, rootlessnet.Config) (int, error)
	stdin, stdout, stderr *os.File
}

// usageError is an error in the command line. Its text is followed by a hint to --help.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// main runs the program and returns its exit code.
func (p program) main(args []string) int {
	child := detachedChild()
	var messages io.Writer = p.stderr
	if child != nil {
		messages = child.messages
	}
	code, err := p.execute(args, child, messages)
	if err != nil {
		fmt.Fprintf(messages, "rootless-run: %v\n", err)
		var wrong usageError
		var config *rootlessnet.UsageError
		if errors.As(err, &wrong) || errors.As(err, &config) {
			fmt.Fprintln(messages, "See 'rootless-run --help'.")
		}
		if code == 0 {
			code = rootlessnet.ExitFailure
		}
	}
	return code
}

func (p program) execute(args []string, child *detached, messages io.Writer) (code int, err error) {
	var o options
	cmd := newCommand(&o)
	cmd.SetArgs(args)
	cmd.SetIn(p.stdin)
	cmd.SetOut(p.stdout)
	cmd.SetErr(messages)
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if shell := completionShell(cmd, argv); shell != "" {
			return writeCompletion(cmd, shell, p.stdout)
		}
		c, err := p.config(&o, argv)
		if err != nil {
			return err
		}
		if o.detach && child == nil {
			if err := c.Validate(); err != nil {
				return err
			}
			code, err = p.detach(args)
			return err
		}
		code, err = p.foreground(c, &o, child, messages)
		return err
	}
	err = cmd.ExecuteContext(context.Background())
	return code, err
}

// foreground runs the sandbox in this process. child is nil if the process is not the background process of --detach.
func (p program) foreground(c rootlessnet.Config, o *options, child *detached, messages io.Writer) (int, error) {
	var err error
	if c.Listeners, err = inheritedListeners(); err != nil {
		return 0, err
	}
	c.Logger = slog.New(textlog.New(messages, "rootless-run", o.logLevel.Least()))
	c.OnPublish = func(m rootlessnet.PortMapping) {
		fmt.Fprintf(messages, "rootless-run: published %s\n", m)
	}
	relay := catchSignals()
	defer relay.stop()
	c.Signals = relay.forward
	c.OnStart = func(rootlessnet.Started) { relay.commandStarted() }
	c.KeepEnded = o.keep(child)
	if child != nil {
		c.Stdin, c.Stdout, c.Stderr, c.LogOutput = nil, nil, nil, true
		c.OnStart = func(s rootlessnet.Started) {
			relay.commandStarted()
			child.started(s.ID)
		}
	}
	return p.run(context.Background(), c)
}

// config translates the options into a Config.
func (p program) config(o *options, argv []string) (rootlessnet.Config, error) {
	c := o.config
	c.Argv = argv
	if len(argv) == 0 {
		shell := os.Getenv("SHELL")
		if o.detach || !term.IsTerminal(int(p.stdin.Fd())) {
			return c, usageError{errors.New(`"rootless-run" requires at least 1 argument.`)}
		}
		if shell == "" {
			shell = "/bin/sh"
		}
		c.Argv = []string{shell}
	}
	c.Stdin, c.Stdout, c.Stderr = p.stdin, p.stdout, p.stderr
	c.Env = withoutOurVariables(os.Environ())
	c.Confine = true
	c.DisableIPv6 = !o.ipv6
	c.Publish = o.publish.Specs
	for _, subnet := range o.subnets.List {
		if subnet.Addr().Is4() {
			c.Subnet = subnet
		} else {
			c.Subnet6 = subnet
		}
	}
	return c, nil
}

const longHelp = `Run a command with a network of its own, without privileges.

The command gets its own user, network, mount, UTS and IPC namespaces. It can reach everything that the host can reach,
except for the host's loopback. Clients reach it through published ports (-p), and it sees their real addresses.
Without a command, $SHELL is run if standard input is a terminal.

Exit status: that of the command; 125 if rootless-run failed, 126 if the command cannot be executed, 127 if it was not
found, 128+n if signal n ended it.`

// options holds the values of the flags.
type options struct {
	config    rootlessnet.Config
	publish   flagvalue.Publish
	subnets   flagvalue.Subnets
	ipv6      bool
	detach    bool
	remove    bool
	removeSet func() bool // whether --rm was given
	logLevel  flagvalue.Level
}

func newCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rootless-run [flags] [--] [COMMAND [ARG...]]",
		Short:   "Run a command with a network of its own, without privileges",
		Long:    longHelp,
		Version: version,
		Example: `  rootless-run -p 8080:80 -- python3 -m http.server 80
  rootless-run --name db -p 127.0.0.1:5432:5432 postgres -D data
  rootless-run --network container:db psql -h 127.0.0.1`,
		Args:                  cobra.ArbitraryArgs,
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.CompletionOptions.DisableDefaultCmd = true // otherwise "rootless-run -- completion" would not run a command of that name
	cmd.SetVersionTemplate("rootless-run version {{.Version}}\n")

	c := &o.config
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after the command belong to the command
	f.SortFlags = true
	f.StringVar(&c.Network, "network", rootlessnet.NetworkBridge, "bridge, host, none or container:`NAME`")
	f.VarP(&o.publish, "publish", "p", "publish a port: [ip:][host[-end]]:port[-end][/tcp|udp] (repeatable)")
	f.BoolVarP(&c.PublishAll, "publish-all", "P", false, "publish every port that a program inside listens on, on the same port if that is free")
	f.StringVar(&c.Name, "name", "", "`name` of the sandbox")
	f.StringVarP(&c.Hostname, "hostname", "h", "", "host `name` inside")
	f.Var(&flagvalue.Resolvers{List: &c.DNS}, "dns", "resolver to use instead of the host's (repeatable)")
	f.StringArrayVar(&c.DNSSearch, "dns-search", nil, "search `domain`, \".\" for none (repeatable)")
	f.StringArrayVar(&c.DNSOptions, "dns-opt", nil, "resolver `option` (repeatable)")
	f.StringArrayVar(&c.DNSOptions, "dns-option", nil, "the same as --dns-opt")
	f.Lookup("dns-option").Hidden = true
	f.Var(&flagvalue.Hosts{List: &c.ExtraHosts}, "add-host", "name inside, as `name:address`; the address may be host-gateway (repeatable)")
	f.Var(&flagvalue.Addr{Addr: &c.IP, Family: 4}, "ip", "IPv4 address inside")
	f.Var(&flagvalue.Addr{Addr: &c.IP6, Family: 6}, "ip6", "IPv6 address inside")
	f.Var(&flagvalue.MAC{MAC: &c.MAC}, "mac-address", "hardware address inside")
	f.Var(&o.subnets, "subnet", "network inside, one for IPv4 and one for IPv6 (repeatable)")
	f.IntVar(&c.MTU, "mtu", rootlessnet.DefaultMTU, "MTU of eth0 inside, in `bytes`")
	f.BoolVar(&o.ipv6, "ipv6", true, "IPv6 inside")
	f.Var(&flagvalue.Loopback{To: &c.HostLoopback}, "host-loopback", "ports of the host's loopback to open to the command: PORT[,PORT...] or all")
	f.StringVar(&c.UserNS, "userns", rootlessnet.UserNSRoot, "user id of the command inside: root, keep-id or auto")
	f.BoolVar(&c.PIDNamespace, "pid", false, "give the command a pid namespace of its own")
	f.StringVar(&c.Link, "link", rootlessnet.LinkAuto, "link device: auto, tap, tap-plain or packet")
	f.StringVar(&c.Datapath, "datapath", rootlessnet.DatapathAuto, "how TCP is forwarded: auto, stack (by the TCP/IP stack of this program) or splice (by the kernel)")
	f.StringVar(&c.PCAP, "pcap", "", "write every frame to `file`, in pcap format")
	f.BoolVarP(&o.detach, "detach", "d", false, "run in the background and print the id")
	f.BoolVar(&o.remove, "rm", false, "keep neither exit code nor output after the end; the default without --detach (--rm=false keeps the exit code)")
	f.Var(&o.logLevel, "log-level", "debug, info, warn or error")
	o.removeSet = func() bool { return f.Changed("rm") }
	f.Bool("help", false, "show this text")
	f.BoolP("version", "v", false, "show the version")

	complete := func(flag string, words ...string) {
		cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("network", "bridge", "host", "none", "container:")
	complete("userns", "root", "keep-id", "auto")
	complete("datapath", "auto", "stack", "splice")
	complete("link", "auto", "tap", "tap-plain", "packet")
	complete("log-level", "debug", "info", "warn", "error")
	complete("add-host")
	complete("publish")
	return cmd
}

// completionShell returns the shell of a request for a completion script, "rootless-run completion SHELL" without flags, and ""
// otherwise. "rootless-run -- completion SHELL" runs a command named completion.
func completionShell(cmd *cobra.Command, argv []string) string {
	if len(argv) != 2 || argv[0] != "completion" || cmd.Flags().NFlag() > 0 || cmd.ArgsLenAtDash() >= 0 {
		return ""
	}
	switch argv[1] {
	case "bash", "zsh", "fish":
		return argv[1]
	}
	return ""
}

func writeCompletion(cmd *cobra.Command, shell string, out io.Writer) error {
	switch shell {
	case "bash":
		return cmd.GenBashCompletionV2(out, true)
	case "zsh":
		return cmd.GenZshCompletion(out)
	default:
		return cmd.GenFishCompletion(out, true)
	}
}
