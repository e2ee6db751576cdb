package main

import (
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"rootlessnet"
	"rootlessnet/internal/flagvalue"
)

// options holds the values of the flags.
type options struct {
	config      rootlessnet.Config
	network     networkMode
	publish     flagvalue.Publish
	expose      exposed
	subnets     flagvalue.Subnets
	env         environment
	labels      labels
	logDriver   logDriver
	ipv6        bool
	detach      bool
	interactive bool
	sigProxy    bool
	logLevel    flagvalue.Level
}

// The groups of flags in the help text, in their order.
const (
	groupNetwork = "Network"
	groupPorts   = "Published ports"
	groupNames   = "Names"
	groupProcess = "Command"
	groupOutput  = "Terminal, background and messages"
)

var groups = []string{groupNetwork, groupPorts, groupNames, groupProcess, groupOutput}

// groupKey is the annotation of a flag that holds its group.
const groupKey = "group"

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
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		var r *refusal
		if errors.As(err, &r) {
			err = r // without the words "invalid argument", which would blame the value
		}
		return usageError{err}
	})
	cmd.SetUsageFunc(usage)
	cmd.CompletionOptions.DisableDefaultCmd = true // otherwise "rootless-run -- completion" would not run a command of that name
	cmd.SetVersionTemplate("rootless-run version {{.Version}}\n")

	f := cmd.Flags()
	f.SetInterspersed(false) // flags after the command belong to the command
	f.SortFlags = true
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name {
		case "net":
			name = "network"
		case "dns-option":
			name = "dns-opt"
		}
		return pflag.NormalizedName(name)
	})
	for _, add := range []struct {
		group string
		flags func(*pflag.FlagSet, *options)
	}{{groupNetwork, networkFlags}, {groupPorts, portFlags}, {groupNames, nameFlags}, {groupProcess, processFlags}, {groupOutput, outputFlags}} {
		set := pflag.NewFlagSet(add.group, pflag.ContinueOnError)
		add.flags(set, o)
		set.VisitAll(func(flag *pflag.Flag) {
			flag.Annotations = map[string][]string{groupKey: {add.group}}
			f.AddFlag(flag)
		})
	}
	refuseFlags(f)

	complete := func(flag string, words ...string) {
		cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("network", "bridge", "host", "none", "container:")
	complete("userns", "keep-id", "root", "auto")
	complete("datapath", "auto", "stack", "splice")
	complete("link", "auto", "tap", "tap-plain", "packet")
	complete("log-level", "debug", "info", "warn", "error")
	complete("log-driver", "local", "none")
	complete("pid", "private", "host")
	complete("cap-add", "NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE")
	complete("stop-signal", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGKILL")
	for _, flag := range []string{"add-host", "publish", "expose", "env", "label", "sysctl", "user"} {
		complete(flag)
	}
	return cmd
}

func networkFlags(f *pflag.FlagSet, o *options) {
	c := &o.config
	o.network.mode, c.Network = &c.Network, rootlessnet.NetworkBridge
	f.Var(&o.network, "network", "bridge, host, none or container:`NAME`; also --net")
	f.Var(&flagvalue.Addr{Addr: &c.IP, Family: 4}, "ip", "IPv4 address inside")
	f.Var(&flagvalue.Addr{Addr: &c.IP6, Family: 6}, "ip6", "IPv6 address inside")
	f.Var(&flagvalue.MAC{MAC: &c.MAC}, "mac-address", "hardware address inside")
	f.Var(&o.subnets, "subnet", "network inside, one for IPv4 and one for IPv6 (repeatable)")
	f.IntVar(&c.MTU, "mtu", rootlessnet.DefaultMTU, "MTU of eth0 inside, in `bytes`")
	f.BoolVar(&o.ipv6, "ipv6", true, "IPv6 inside")
	f.Var(&flagvalue.Loopback{To: &c.HostLoopback}, "host-loopback", "ports of the host's loopback to open to the command: PORT[,PORT...] or all")
	f.BoolVar(&c.UDPFullCone, "udp-full-cone", false, "let UDP answers in from addresses that the command has not sent to")
	f.Var(&sysctls{list: &c.Sysctls}, "sysctl", "kernel parameter of the network inside, net.* only: `name=value` (repeatable)")
	f.StringVar(&c.Link, "link", rootlessnet.LinkAuto, "link device: auto, tap, tap-plain or packet")
	f.StringVar(&c.Datapath, "datapath", rootlessnet.DatapathAuto, "datapath of TCP: auto, stack (userspace TCP/IP stack) or splice (kernel sockets)")
	c.TCPBuffers = rootlessnet.DefaultTCPBuffers
	f.Var(&flagvalue.Size{Bytes: &c.TCPBuffers}, "tcp-buffers", "memory for TCP data that its receiver does not read, of all connections on the stack path")
	f.StringVar(&c.PCAP, "pcap", "", "write every frame to `file`, in pcap format")
}

func portFlags(f *pflag.FlagSet, o *options) {
	f.VarP(&o.publish, "publish", "p", "publish a port: [ip:][host[-end]]:port[-end][/tcp|udp] (repeatable)")
	f.BoolVarP(&o.config.PublishAll, "publish-all", "P", false, "publish every port that a program listens on inside, as the same port of the host if that is free")
	f.Var(&o.expose, "expose", "with -P: publish this port from the start, as a free port of the host: port[-end][/tcp|udp] (repeatable)")
}

func nameFlags(f *pflag.FlagSet, o *options) {
	c := &o.config
	f.StringVar(&c.Name, "name", "", "`name` of the sandbox")
	f.StringVarP(&c.Hostname, "hostname", "h", "", "host `name` inside")
	f.Var(&flagvalue.Resolvers{List: &c.DNS}, "dns", "DNS server to use instead of the host's (repeatable)")
	f.StringArrayVar(&c.DNSSearch, "dns-search", nil, "search `domain`, \".\" for none (repeatable)")
	f.StringArrayVar(&c.DNSOptions, "dns-opt", nil, "resolver `option` (repeatable)")
	f.Var(&flagvalue.Hosts{List: &c.ExtraHosts}, "add-host", "name inside, as `name:address`; the address may be host-gateway (repeatable)")
	f.VarP(&o.labels, "label", "l", "label of the sandbox, shown by rootless-net inspect: `name[=value]` (repeatable)")
	f.Var(&labelFiles{&o.labels}, "label-file", "labels, a line each, of a `file` (repeatable)")
	f.StringVar(&c.IDFile, "cidfile", "", "write the id to a new `file`")
}

func processFlags(f *pflag.FlagSet, o *options) {
	c := &o.config
	f.VarP(&o.env, "env", "e", "environment variable: `NAME=value`, or NAME for the caller's (repeatable)")
	f.Var(&envFiles{&o.env}, "env-file", "environment variables, a line each, of a `file` (repeatable)")
	f.StringVarP(&c.Dir, "workdir", "w", "", "working `directory`")
	f.StringVarP(&c.User, "user", "u", "", "user inside: `name|uid[:group|gid]`, one that --userns has; without --userns it chooses that")
	f.StringVar(&c.UserNS, "userns", rootlessnet.DefaultUserNS, "identity inside: keep-id (yours), root (of the network, to administer it) or auto (root, with subordinate ids)")
	f.StringArrayVar(&c.CapAdd, "cap-add", nil, "`capability` over the network inside for a command that is not root there: NET_ADMIN, NET_RAW or NET_BIND_SERVICE (repeatable)")
	pid := f.VarPF(&pidMode{private: &c.PIDNamespace}, "pid", "", "pid namespace: host, or private for one of its own, as has --pid alone")
	pid.NoOptDefVal = pidPrivate
	f.BoolVar(&c.ReadOnly, "read-only", false, "make the file systems read-only inside, except /dev, /proc and /sys")
	f.StringVar(&c.StopSignal, "stop-signal", "", "`signal` for the command when rootless-run is asked to end by SIGTERM, as by rootless-net stop")
	f.Bool("init", true, "no effect: there is always an init, which reaps processes")
}

func outputFlags(f *pflag.FlagSet, o *options) {
	f.BoolVarP(&o.interactive, "interactive", "i", true, "standard input; with --detach, one that stays open")
	f.BoolVarP(&o.config.TTY, "tty", "t", false, "give the command a terminal of its own")
	f.BoolVarP(&o.detach, "detach", "d", false, "run in the background and print the id")
	f.Bool("rm", true, "remove what is left of the sandbox when it ends")
	f.Var(&o.logDriver, "log-driver", "with --detach: local keeps the command's output, none does not")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "pass signals on to the command")
	f.Var(&o.logLevel, "log-level", "debug, info, warn or error")
	f.Bool("help", false, "show this text")
	f.Bool("version", false, "show the version")
}
