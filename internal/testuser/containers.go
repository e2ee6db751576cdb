package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// callersPackage holds the tests that run Podman and other callers, which need more of the machine than other tests.
const callersPackage = "/e2e/callers"

// The host that those tests see: one interface with a default route, with addresses for documentation (RFC 5737, RFC 3849).
const (
	hostLink     = "lan0"
	hostLinkPeer = "wire0" // its other end; no machine is behind it
	hostAddr4    = "198.51.100.1/24"
	hostGateway4 = "198.51.100.254"
	hostAddr6    = "2001:db8:1::1/64"
	hostGateway6 = "2001:db8:1::fe"
)

// hostContainers makes what rootless containers need and the machine may not have: a cgroup2 file system, mounts that
// propagate, and a network of our own, so that ports are free and an address is known.
func (e *environment) hostContainers() error {
	const cgroups = "/sys/fs/cgroup"
	if err := syscall.Mount("cgroup2", cgroups, "cgroup2", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	e.mounts = append(e.mounts, cgroups)
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if err := buildHost(); err != nil {
		return fmt.Errorf("the tests' network: %w", err)
	}
	return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

func buildHost() error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostLink}, PeerName: hostLinkPeer}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	for _, name := range []string{"lo", hostLinkPeer, hostLink} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	link, err := netlink.LinkByName(hostLink)
	if err != nil {
		return err
	}
	for addr, gateway := range map[string]string{hostAddr4: hostGateway4, hostAddr6: hostGateway6} {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		v6 := a.IP.To4() == nil
		if v6 {
			a.Flags = unix.IFA_F_NODAD
		}
		err = netlink.AddrAdd(link, a)
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)})
		}
		if err != nil && !v6 { // the kernel may be without IPv6
			return fmt.Errorf("%s: %w", addr, err)
		}
	}
	return nil
}

// adoptOrphans makes this process the parent of processes that the tests leave behind (subreaper), so that they
// are reaped when they end and do not count as running. It returns when main has ended, which it leaves to be waited for.
func adoptOrphans(main int) {
	var info struct {
		signo, errno, code int32
		_                  int32
		pid, uid           int32
		_                  [104]byte // siginfo_t has 128 bytes
	}
	const pAll = 0 // P_ALL
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pAll, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, 0, 0)
		switch {
		case errno == syscall.EINTR:
			continue
		case errno != 0 || int(info.pid) == main:
			return
		}
		_, _ = syscall.Wait4(int(info.pid), nil, 0, nil)
	}
}

// endOrphans kills the processes that are left when the tests have ended. Children of a killed process become children of
// this one, and are killed as well.
func endOrphans() {
	for {
		children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
		words := strings.Fields(string(children))
		if err != nil || len(words) == 0 {
			return
		}
		for _, word := range words {
			if pid, err := strconv.Atoi(word); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				_, _ = syscall.Wait4(pid, nil, 0, nil)
			}
		}
	}
}
