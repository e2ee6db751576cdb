package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// state is all that a helper may have touched in the namespace: links, addresses, routes, rules, sysctls.
func (n *namespace) state() string {
	n.Helper()
	return n.enter("sh", "-c", `
		ip -brief link; ip -brief address; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all type unicast
		cd /proc/sys/net && grep -s . ipv4/conf/*/accept_local ipv4/conf/*/rp_filter ipv4/tcp_fwmark_accept ipv4/fwmark_reflect ipv6/fwmark_reflect \
			ipv4/ip_unprivileged_port_start ipv4/ping_group_range ipv4/ip_forward; true`) // an interface may be going at this moment
}

// withoutMarks leaves out the sysctls of marks, and the accept_local of lo.
func withoutMarks(state string) string {
	var kept []string
	for _, line := range strings.Split(state, "\n") {
		if !strings.Contains(line, "fwmark_") && !strings.Contains(line, "lo/accept_local") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

// leaves expects that the namespace has its state of before again.
func (n *namespace) leaves(before string) {
	n.Helper()
	eventually(n.T, 3*time.Second, func() string {
		after := n.state()
		if after == before || withoutMarks(after) == before {
			return ""
		}
		var words []string
		for _, line := range strings.Split(after, "\n") {
			if !strings.Contains(before, line) {
				words = append(words, line)
			}
		}
		return fmt.Sprintf("left in the namespace:\n%s\nbefore:\n%s", strings.Join(words, "\n"), before)
	})
}

// TestAttachLeavesTheNamespaceAsItWas, however attach ends.
func TestAttachLeavesTheNamespaceAsItWas(t *testing.T) {
	for _, kind := range kinds(t) {
		for _, how := range []string{"signal", "kill", "agent killed"} {
			t.Run(kind+", "+how, func(t *testing.T) {
				l := newLab(t)
				n := l.holder()
				n.enter("ip", "link", "set", "lo", "up") // which a helper may leave up
				before := n.state()
				start := func() *attached {
					return l.attach("--link", kind, "--configure", "--ifname", "tap0", strconv.Itoa(n.pid))
				}
				a := start()
				n.wantTraffic(0)
				switch how {
				case "signal":
					_ = a.cmd.Process.Signal(syscall.SIGTERM)
				case "kill":
					_ = a.cmd.Process.Kill()
				case "agent killed":
					// No process is left that could undo what is not bound to a descriptor. The next start undoes it, except for
					// the values that it finds changed.
					before = withoutMarks(before)
					for _, pid := range children(t, a.cmd.Process.Pid) {
						_ = syscall.Kill(pid, syscall.SIGKILL)
					}
					<-a.ended
					a = start()
					n.wantTraffic(0)
					_ = a.cmd.Process.Signal(syscall.SIGTERM)
				}
				<-a.ended
				n.leaves(before)
			})
		}
	}
}
