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

// insideProbes run in the child's namespaces.
func insideProbes() []probe { return append(sharedProbes(), isolatedProbes()...) }

// sharedProbes test the child's own namespaces.
func sharedProbes() []probe {
	return []probe{
		{[]string{"user-namespace", "network-namespace"}, probeCapabilities},
		one("mount-namespace", probeMounts),
		one("uts-ipc-namespace", probeHostname),
	}
}

// isolatedProbes run each in a network namespace of its own.
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

// runInside runs all of them, in the child of roleInside.
func runInside(ctx context.Context) map[string]finding {
	isolated := make(chan map[string]finding, 1)
	go func() {
		isolated <- runAll(ctx, isolatedProbes(), func() error {
			// The goroutine stays locked to the thread, so that Go's runtime ends the thread, and the kernel the namespace,
			// when the goroutine ends.
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("no network namespace to test it in: %w", err)
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

// probeCapabilities sets lo up, which needs a capability: where AppArmor restricts user namespaces, a clone succeeds but gives no
// capabilities.
func probeCapabilities() map[string]finding {
	err := setUp("lo")
	if err != nil {
		return map[string]finding{"user-namespace": failed("created, but it gives no capabilities: set lo up", err)}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return map[string]finding{"user-namespace": okf("created, with capabilities"),
			"network-namespace": failed("list of links", err)}
	}
	return map[string]finding{"user-namespace": okf("created, with capabilities"),
		"network-namespace": okf("created, lo set up, %d link(s) in it", len(links))}
}

func setUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// probeMounts binds a file of a new tmpfs over /etc/resolv.conf, as is done in a sandbox.
func probeMounts() finding {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return failed("make / a slave", err)
	}
	// The directory only has to exist: the mount is visible in this mount namespace only.
	const dir = "/tmp"
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k"); err != nil {
		return failed("mount a tmpfs", err)
	}
	file := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.53\n"), 0o600); err != nil {
		return failed("write to a tmpfs", err)
	}
	target := "/etc/resolv.conf"
	if _, err := os.Stat(target); err != nil { // it is absent or a dangling link: use a file that exists on every system
		target = "/etc/passwd"
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return failed("bind over "+target, err)
	}
	return okf("created; a tmpfs and a bind mount over %s work", target)
}

func probeHostname() finding {
	if err := unix.Sethostname([]byte("doctor")); err != nil {
		return failed("sethostname", err)
	}
	return okf("created, host name set")
}

// probePIDNamespace mounts a procfs. The kernel refuses that in a container that covers parts of /proc.
func probePIDNamespace() finding {
	if pid := os.Getpid(); pid != 1 {
		return finding{Status: Missing, Detail: fmt.Sprintf("pid is %d in a new pid namespace", pid)}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return failed("make / a slave", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		f := failed("mount /proc", err)
		f.Fix = "docker run --security-opt systempaths=unconfined … # the surrounding container covers parts of /proc"
		return f
	}
	return okf("created, /proc mounted")
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
