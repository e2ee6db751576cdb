package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideProbes are what is tried in the child's namespaces.
func insideProbes() []probe { return append(sharedProbes(), isolatedProbes()...) }

// sharedProbes look at the child's own namespaces.
func sharedProbes() []probe {
	return []probe{
		{[]string{"user-namespace", "network-namespace"}, probeCapabilities},
		one("mount-namespace", probeMounts),
		one("uts-ipc-namespace", probeHostname),
	}
}

// isolatedProbes each get a network namespace of their own.
func isolatedProbes() []probe {
	return []probe{
		{tapNames, probeTAP},
		one("packet-link", probePacketLink),
		one("ipv6", probeIPv6),
		one("nf-tables", probeTables),
		one("nft-owner", probeOwner),
		one("nft-sets", probeSets),
		one("nft-tproxy", probeTPROXY),
		one("nft-forward", probeForward),
		one("policy-routing", probePolicyRouting),
		one("fwmark-accept", func() finding { return probeSysctl("net/ipv4/tcp_fwmark_accept") }),
		one("fwmark-reflect", func() finding { return probeSysctl("net/ipv4/fwmark_reflect") }),
		one("accept-local", func() finding { return probeSysctl("net/ipv4/conf/lo/accept_local") }),
		one("packet-socket", probePacketSocket),
		one("transparent-socket", probeTransparent),
		one("client-address", probeClientAddress),
	}
}

// runInside runs all of them; it is the child's whole work.
func runInside(ctx context.Context) map[string]finding {
	isolated := make(chan map[string]finding, 1)
	go func() {
		isolated <- runAll(ctx, isolatedProbes(), func() error {
			// Never unlocked: the thread ends with its goroutine, and its namespace with it.
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("no network namespace to try it in: %w", err)
			}
			return nil
		})
	}()
	found := runAll(ctx, sharedProbes(), nil)
	for n, f := range <-isolated {
		found[n] = f
	}
	return found
}

// probeCapabilities sets lo up. A clone may succeed and still give no capabilities: that is how AppArmor restricts
// user namespaces.
func probeCapabilities() map[string]finding {
	err := setUp("lo")
	if err != nil {
		return map[string]finding{"user-namespace": failed("made, but it gives no capabilities: lo up", err)}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return map[string]finding{"user-namespace": okf("made, with capabilities"),
			"network-namespace": failed("list of links", err)}
	}
	return map[string]finding{"user-namespace": okf("made, with capabilities"),
		"network-namespace": okf("made, lo set up, %d link(s) in it", len(links))}
}

func setUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// probeMounts does what is done to a sandbox's /etc/resolv.conf: a file of a new tmpfs is bound over it.
func probeMounts() finding {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return failed("make / a slave", err)
	}
	// Any directory that every system has will do: nothing outside sees it.
	const dir = "/tmp"
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k"); err != nil {
		return failed("mount a tmpfs", err)
	}
	file := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.53\n"), 0o600); err != nil {
		return failed("write to a tmpfs", err)
	}
	target := "/etc/resolv.conf"
	if _, err := os.Stat(target); err != nil { // dangling or absent: bind over a file that is surely there
		target = "/etc/passwd"
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return failed("bind over "+target, err)
	}
	return okf("made; a tmpfs and a bind over %s work", target)
}

func probeHostname() finding {
	if err := unix.Sethostname([]byte("doctor")); err != nil {
		return failed("sethostname", err)
	}
	return okf("made, host name set")
}

// probePIDNamespace mounts a procfs, which a container around us may forbid although the clone worked.
func probePIDNamespace() finding {
	if pid := os.Getpid(); pid != 1 {
		return finding{Status: Missing, Detail: fmt.Sprintf("pid is %d in a new pid namespace", pid)}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return failed("make / a slave", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		f := failed("mount /proc", err)
		f.Fix = "docker run --security-opt systempaths=unconfined … # the container around us hides parts of /proc"
		return f
	}
	return okf("made, /proc mounted")
}

func probeIPv6() finding {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return failed("lo", err)
	}
	addr, err := netlink.ParseAddr("fd00:d0c::1/64")
	if err != nil {
		return failed("address", err)
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		return failed("add an address", err)
	}
	return okf("an address can be added")
}
