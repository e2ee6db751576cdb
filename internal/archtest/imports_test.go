package archtest_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// mayImport is the picture of the architecture: every package, from the top down, with every package of ours that it imports.
// An import that is not listed fails, and so does a listed import that the code no longer has. Files of tests are exempt: they
// may import packages of a higher level.
var mayImport = []struct {
	dir     string
	imports []string
}{
	// Programs: arguments in, text and exit status out.
	{"cmd/rootless-run", []string{".", "internal/flagvalue", "internal/helper", "internal/signals", "internal/systemd", "internal/textlog"}},
	{"cmd/rootless-net", []string{".", "api", "userns", // userns: exec joins a sandbox from the caller's own terminal
		"internal/doctor", "internal/flagvalue", "internal/helper", "internal/procstat", "internal/signals", "internal/state", "internal/systemd", "internal/terminal", "internal/textlog", "internal/watch"}},
	{"cmd/pasta", []string{".", "internal/helper", "internal/listenwatch", "internal/pasta", "internal/procnet", "internal/resolvconf", "internal/textlog"}},
	{"cmd/slirp4netns", []string{".", "internal/helper", "internal/slirp", "internal/textlog", "internal/watch"}},
	{"cmd/rootlessport", []string{"internal/helper", "internal/rootlessport", "internal/state", "internal/textlog", "internal/watch"}},
	{"examples/run", []string{"."}},
	{"examples/embed", []string{"."}},
	{"examples/demo", []string{"internal/nettest/topo"}},
	{"internal/flagvalue", []string{"."}}, // the flags that several programs have

	// The library, and the lifecycle of a sandbox.
	{".", []string{"plan", "sandbox"}},
	{"sandbox", []string{"api", "dns", "gateway", "plan", "userns", "internal/bindaddr", "internal/hostnet", "internal/race", "internal/signals", "internal/state", "internal/terminal", "internal/watch"}},

	// The network of a sandbox.
	{"gateway", []string{"dns", "flow", "forwarder", "forwarder/loopback", "forwarder/splicetcp", "forwarder/tcp", "forwarder/udp",
		"netns", "plan", "policy", "stack", "tap", "internal/bindaddr", "internal/fdbudget", "internal/hostnet", "internal/listenwatch", "internal/procnet", "internal/spin", "internal/lockrank"}},
	{"forwarder/tcp", []string{"flow", "forwarder", "stack", "internal/fdbudget", "internal/rawsock", "internal/spin", "internal/lockrank"}},
	{"forwarder/splicetcp", []string{"flow", "forwarder", "splice", "stack", "internal/breaker", "internal/fdbudget", "internal/inbound", "internal/rawsock", "internal/spin", "internal/lockrank"}},
	{"forwarder/udp", []string{"flow", "forwarder", "stack", "internal/fdbudget", "internal/procnet", "internal/rawsock", "internal/spin", "internal/lockrank"}},
	{"forwarder/loopback", []string{"flow", "forwarder", "splice", "internal/fdbudget", "internal/inbound", "internal/rawsock", "internal/spin", "internal/lockrank"}},
	{"forwarder", []string{"flow", "policy", "stack", "internal/breaker", "internal/clientaddr", "internal/fdbudget", "internal/inbound", "internal/procnet", "internal/rawsock", "internal/spin", "internal/lockrank"}},
	{"stack", []string{"flow", "tap", "internal/spin"}},
	{"tap", []string{"internal/rawsock", "internal/spin"}},
	{"policy", []string{"flow"}},
	{"flow", []string{"internal/lockrank"}},
	{"dns", []string{"internal/resolvconf"}},
	{"plan", nil},

	// What is done inside namespaces.
	{"userns", []string{"netns", "internal/procstat", "internal/subid", "internal/watch"}},
	{"netns", []string{"internal/fdbudget"}},
	{"internal/doctor", []string{"internal/subid"}}, // has probes of its own: it imports neither

	// Podman's port helper: a small program, without a TCP/IP stack.
	{"internal/rootlessport", []string{"api", "netns", "splice", "internal/bindaddr", "internal/breaker", "internal/clientaddr", "internal/inbound", "internal/rawsock", "internal/spin", "internal/unixsock"}},
	{"api", []string{"internal/state", "internal/unixsock"}},
	{"internal/state", []string{"internal/procstat"}},
	{"internal/inbound", []string{"splice", "internal/rawsock", "internal/spin", "internal/lockrank"}},
	{"splice", []string{"internal/fdbudget", "internal/lockrank", "internal/rawsock", "internal/spin"}},

	// Tests and measurements.
	{"bench", []string{"internal/nettest/topo", "internal/procstat"}},
	{"e2e", nil},
	{"e2e/asroot", nil},
	{"internal/nettest", []string{"tap", "internal/spin"}}, // a fake tap.Device
	{"internal/nettest/forwardlab", []string{"flow", "forwarder", "policy", "stack", "tap", "internal/fdbudget", "internal/nettest/skip", "internal/race"}},
	{"internal/nettest/cmdtest", nil},
	{"internal/nettest/guest", nil},
	{"internal/nettest/pooltest", []string{"internal/rawsock"}},
	{"internal/nettest/skip", nil},
	{"internal/nettest/topo", nil},
	{"internal/testuser", nil},
	{"internal/archtest", nil},

	// Small packages with one subject each; few of them import anything of ours.
	{"internal/lockrank", nil},
	{"internal/pasta", []string{"internal/getopt"}},
	{"internal/slirp", []string{"internal/getopt"}},
	{"internal/bindaddr", nil},
	{"internal/breaker", []string{"internal/lockrank"}},
	{"internal/clientaddr", nil},
	{"internal/fdbudget", nil},
	{"internal/getopt", nil},
	{"internal/helper", nil},
	{"internal/hostnet", nil},
	{"internal/listenwatch", nil},
	{"internal/procnet", nil},
	{"internal/procstat", nil},
	{"internal/race", nil},
	{"internal/rawsock", nil},
	{"internal/resolvconf", nil},
	{"internal/signals", nil},
	{"internal/spin", []string{"internal/lockrank"}},
	{"internal/subid", nil},
	{"internal/systemd", nil},
	{"internal/terminal", []string{"internal/signals"}},
	{"internal/textlog", nil},
	{"internal/unixsock", nil},
	{"internal/watch", nil},
}

func top(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	return first
}

// ours returns the directory of an imported package of ours.
func ours(imported string) (dir string, ok bool) {
	if imported == "." {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

// edges are the imports that the code has, from package to package, each with a file that has it.
func edges(t *testing.T) map[string]map[string]string {
	all := map[string]map[string]string{}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		if all[f.dir] == nil {
			all[f.dir] = map[string]string{}
		}
		for _, imported := range f.imports {
			if dir, ok := ours(imported); ok && dir != f.dir {
				all[f.dir][dir] = f.name
			}
		}
	}
	return all
}

func TestImportsAreThoseOfThePicture(t *testing.T) {
	have := edges(t)
	listed := map[string]bool{}
	for _, p := range mayImport {
		listed[p.dir] = true
		imports, exists := have[p.dir]
		if !exists {
			t.Errorf("%s is listed and does not exist", p.dir)
			continue
		}
		for _, dir := range slices.Sorted(maps.Keys(imports)) {
			if !slices.Contains(p.imports, dir) {
				t.Errorf("%s imports %s, which the picture does not allow", imports[dir], dir)
			}
		}
		for _, dir := range p.imports {
			if _, used := imports[dir]; !used {
				t.Errorf("%s may import %s and does not", p.dir, dir)
			}
		}
	}
	for dir := range have {
		if !listed[dir] {
			t.Errorf("%s has no place in the picture", dir)
		}
	}
}

// Only the stack imports gVisor: the packages below it, the port helper and the process inside a namespace stay small.
func TestOnlyTheStackImportsGVisor(t *testing.T) {
	allowed := []string{"stack", "internal/nettest/forwardlab"}
	for _, f := range sources(t) {
		if f.test || slices.Contains(allowed, f.dir) {
			continue
		}
		for _, imported := range f.imports {
			if strings.HasPrefix(imported, "gvisor.dev/") {
				t.Errorf("%s imports %s", f.name, imported)
			}
		}
	}
}
