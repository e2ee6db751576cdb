package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/flagvalue"
	"rootlessnet/internal/helper"
	"rootlessnet/internal/systemd"
	"rootlessnet/internal/textlog"
	"rootlessnet/internal/watch"
)

const attachHelp = `Connect a network namespace that another program made, and serve it until it ends.

The namespace is that of process PID, or the one at the path given by --netns. The owner of the namespace needs no privilege
for this; nor does root of the user namespace that owns it. By default the uplink is made but not configured: the program
that made the namespace may do that, or DHCP and router advertisements. With --configure, attach configures it.

It ends when the process ends or the path is removed, at any event on --exit-fd, and on SIGTERM, SIGINT or SIGHUP, and
undoes everything. Under systemd it reports that it is ready, and uses sockets that systemd has bound (LISTEN_FDS) for the
published ports of the same address.

Exit status: 0 after an end of these kinds, 1 after a failure, 125 after a mistake on the command line.`

// attachOptions are the values of the flags of attach.
type attachOptions struct {
	config          rootlessnet.Config
	target          rootlessnet.Target
	publish         flagvalue.Publish
	subnets         flagvalue.Subnets
	logLevel        flagvalue.Level
	ipv6            bool
	readyFD, exitFD int
	tapFD           int
	pidFile         string
}

func (p *program) attachCommand() *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach [flags] PID | --netns PATH [--userns PATH]",
		Short: "Connect a network namespace that another program made",
		Long:  attachHelp,
		Example: `  unshare --user --map-root-user --net sleep infinity &
  rootless-net attach --configure -p 8080:80 $!`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.setTarget(args); err != nil {
				return usageError{err}
			}
			err := p.attach(cmd.Context(), &o)
			var wrong *rootlessnet.UsageError
			if errors.As(err, &wrong) {
				return usageError{err}
			}
			return err
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	o.addFlags(cmd)
	return cmd
}

func (o *attachOptions) addFlags(cmd *cobra.Command) {
	c, f := &o.config, cmd.Flags()
	f.StringVar(&o.target.NetNS, "netns", "", "`path` of the network namespace")
	f.StringVar(&o.target.UserNS, "userns", "", "`path` of the user namespace to enter; default: the one that owns the network namespace")
	f.IntVar(&o.tapFD, "tap-fd", -1, "use the TAP that is open as this `descriptor`, and enter no namespace")
	f.BoolVar(&c.Configure, "configure", false, "configure lo and the uplink: link state, addresses and routes")
	f.StringVar(&c.IfName, "ifname", "eth0", "`name` of the uplink inside; a persistent TAP of that name is used if there is one")
	f.IntVar(&o.readyFD, "ready-fd", -1, "write \"1\" to this `descriptor` when the network is ready")
	f.IntVar(&o.exitFD, "exit-fd", -1, "end at any event on this `descriptor`")
	f.StringVar(&o.pidFile, "pid-file", "", "write our pid to `file`")
	f.StringVar(&c.APISocket, "api-socket", "", "additional `path` of the control socket")
	f.VarP(&o.publish, "publish", "p", "publish a port: [ip:][host[-end]]:port[-end][/tcp|udp] (repeatable)")
	f.BoolVarP(&c.PublishAll, "publish-all", "P", false, "publish every port that a program inside listens on, on the same port if that is free")
	f.StringVar(&c.Name, "name", "", "`name` of the sandbox")
	f.Var(&flagvalue.Resolvers{List: &c.DNS}, "dns", "resolver to use instead of the host's (repeatable)")
	f.StringArrayVar(&c.DNSSearch, "dns-search", nil, "search `domain` that DHCP and router advertisements name (repeatable)")
	f.Var(&flagvalue.Hosts{List: &c.ExtraHosts}, "add-host", "name for the resolver, as `name:address`; the address may be host-gateway (repeatable)")
	f.Var(&flagvalue.Addr{Addr: &c.IP, Family: 4}, "ip", "IPv4 address inside")
	f.Var(&flagvalue.Addr{Addr: &c.IP6, Family: 6}, "ip6", "IPv6 address inside")
	f.Var(&flagvalue.MAC{MAC: &c.MAC}, "mac-address", "hardware address inside, with --configure")
	f.Var(&o.subnets, "subnet", "network inside, one for IPv4 and one for IPv6 (repeatable)")
	f.IntVar(&c.MTU, "mtu", rootlessnet.DefaultMTU, "MTU of the uplink inside, in `bytes`")
	f.BoolVar(&o.ipv6, "ipv6", true, "IPv6 inside")
	f.Var(&flagvalue.Loopback{To: &c.HostLoopback}, "host-loopback", "ports of the host's loopback to open: PORT[,PORT...] or all")
	f.BoolVar(&c.UDPFullCone, "udp-full-cone", false, "let UDP answers in from addresses that nothing inside has sent to")
	f.Var(&flagvalue.Addr{Addr: &c.OutboundAddr, Family: 4}, "outbound-addr", "IPv4 address of the host that connections leave from")
	f.Var(&flagvalue.Addr{Addr: &c.OutboundAddr6, Family: 6}, "outbound-addr6", "IPv6 address of the host that connections leave from")
	f.StringVar(&c.Link, "link", rootlessnet.LinkAuto, "link device: auto, tap, tap-plain or packet")
	f.StringVar(&c.Datapath, "datapath", rootlessnet.DatapathAuto, "how TCP is forwarded: auto, stack (by the TCP/IP stack of this program) or splice (by the kernel)")
	c.TCPBuffers = rootlessnet.DefaultTCPBuffers
	f.Var(&flagvalue.Size{Bytes: &c.TCPBuffers}, "tcp-buffers", "memory for TCP data that its receiver does not read, of all connections on the stack path")
	f.StringVar(&c.PCAP, "pcap", "", "write every frame to `file`")
	f.Var(&o.logLevel, "log-level", "debug, info, warn or error")
	for flag, words := range map[string][]string{"datapath": {"auto", "stack", "splice"}, "link": {"auto", "tap", "tap-plain", "packet"}, "log-level": {"debug", "info", "warn", "error"}} {
		cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
}

// setTarget reads the PID from the arguments, unless a flag names the target.
func (o *attachOptions) setTarget(args []string) error {
	flagged := o.target.NetNS != "" || o.tapFD >= 0
	switch {
	case len(args) > 1 || flagged && len(args) > 0:
		return errors.New(`"rootless-net attach" takes a PID, --netns or --tap-fd, and one of them.`)
	case flagged:
		return nil
	case len(args) == 0:
		return errors.New(`"rootless-net attach" requires a PID, --netns or --tap-fd.`)
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil || pid <= 0 {
		return fmt.Errorf("invalid PID: %q", args[0])
	}
	o.target.PID = pid
	return nil
}

// attach connects the namespace and waits until it ends or a signal arrives.
func (p *program) attach(ctx context.Context, o *attachOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(caught)

	c := o.config
	c.Confine, c.DisableIPv6, c.Publish = true, !o.ipv6, o.publish.Specs
	for _, subnet := range o.subnets.List {
		if subnet.Addr().Is4() {
			c.Subnet = subnet
		} else {
			c.Subnet6 = subnet
		}
	}
	c.Logger = slog.New(textlog.New(p.stderr, "rootless-net", o.logLevel.Least()))
	files, err := adoptFDs(o, &c)
	if err != nil {
		return err
	}
	o.target.TAP = files.tap
	ended, err := watchExit(files.exit)
	if err != nil {
		return err
	}
	stopped := make(chan struct{}) // closed when a signal or --exit-fd ends the program
	go func() {                    // may run until the process ends: attach returns only to exit
		select {
		case <-caught:
		case <-ended:
		}
		close(stopped)
		cancel()
	}()
	box, err := rootlessnet.Attach(ctx, o.target, c)
	if err != nil {
		select {
		case <-stopped:
			return nil
		default:
			return err
		}
	}
	defer box.Close()
	if o.pidFile != "" {
		if err := os.WriteFile(o.pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return fmt.Errorf("pid file: %w", err)
		}
		defer os.Remove(o.pidFile)
	}
	if err := helper.Ready(files.ready); err != nil {
		c.Logger.Warn(err.Error())
	}
	notify := func(state string) {
		if err := systemd.Notify(state); err != nil {
			c.Logger.Warn(err.Error())
		}
	}
	notify(fmt.Sprintf("READY=1\nMAINPID=%d\nSTATUS=Serving %s with %d published ports", os.Getpid(), box.Info().Interface, len(box.Ports())))
	<-box.Done()
	notify("STOPPING=1")
	select {
	case <-stopped:
		return nil
	default:
		return box.Err()
	}
}

// attachFDs are the descriptors that the flags name; nil for a flag that is not set.
type attachFDs struct{ ready, exit, tap *os.File }

// adoptFDs takes over the descriptors that the flags name and those of systemd, and closes all others that were inherited. The
// sockets of systemd, for published ports, go into c.
func adoptFDs(o *attachOptions, c *rootlessnet.Config) (attachFDs, error) {
	n := systemd.ListenFDs()
	numbers := []int{o.readyFD, o.exitFD, o.tapFD}
	for fd := systemd.FirstFD; fd < systemd.FirstFD+n; fd++ {
		numbers = append(numbers, fd)
	}
	files, err := helper.Adopt(numbers...)
	if err != nil {
		return attachFDs{}, err
	}
	c.Listeners = files[3:]
	return attachFDs{ready: files[0], exit: files[1], tap: files[2]}, nil
}

// watchExit returns a channel that is closed at any event on f. Without f it returns nil.
func watchExit(f *os.File) (<-chan struct{}, error) {
	if f == nil {
		return nil, nil
	}
	w, err := watch.File(f)
	if errors.Is(err, unix.EPERM) {
		return nil, errors.New("--exit-fd: the kernel reports no events for a file of this kind; use a pipe or a socket")
	}
	if err != nil {
		return nil, fmt.Errorf("--exit-fd: %w", err)
	}
	return w.C(), nil // the watch stays until the process ends
}
