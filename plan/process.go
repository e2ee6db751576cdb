package plan

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// User is the ids of the command inside its user namespace.
type User struct{ UID, GID uint32 }

// Sysctl is one kernel parameter of the network namespace.
type Sysctl struct {
	Path  string `json:"path"` // below /proc/sys: "net/ipv4/ip_forward"
	Value string `json:"value"`
}

// capabilities are those of Config.CapAdd with their numbers: what programs for networks ask for.
var capabilities = map[string]int{
	"NET_ADMIN":        unix.CAP_NET_ADMIN,
	"NET_RAW":          unix.CAP_NET_RAW,
	"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
}

// setUser reads Config.User, and chooses the id map by it if the caller has not.
func (p *Plan) setUser(c *Config) error {
	if c.User == "" {
		return nil
	}
	own := User{uint32(os.Geteuid()), uint32(os.Getegid())}
	u, err := parseUser(c.User, own)
	if err != nil {
		return &UsageError{"User", err}
	}
	p.User = &u
	if p.Network == ContainerPrefix {
		return nil // the map is that of the sandbox that is joined, and the kernel says what it lacks
	}
	if c.UserNS == "" {
		switch u.UID {
		case 0:
			p.UserNS = UserNSRoot
		case own.UID:
			p.UserNS = UserNSKeepID
		default:
			p.UserNS = UserNSAuto
		}
	}
	switch {
	case p.UserNS == UserNSRoot && u != User{}:
		return usage("User", "user %d:%d does not exist inside: userns root has user 0 and group 0 only", u.UID, u.GID)
	case p.UserNS == UserNSKeepID && u != own:
		return usage("User", "user %d:%d does not exist inside: userns keep-id has user %d and group %d only", u.UID, u.GID, own.UID, own.GID)
	}
	return nil
}

// parseUser reads name|uid[:group|gid] with Docker's words for what it does not find. Without a group it is the primary one of
// the user; 0 if that is not known.
func parseUser(spec string, own User) (u User, err error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	var entry *user.User
	if u.UID, err = parseID(name); err == nil {
		entry, _ = user.LookupId(name)
	} else if entry, err = user.Lookup(name); err == nil {
		u.UID, err = parseID(entry.Uid)
	}
	if err != nil {
		return u, fmt.Errorf("unable to find user %s: no matching entries in passwd file", name)
	}
	switch {
	case !hasGroup && u.UID == own.UID:
		u.GID = own.GID
	case !hasGroup && entry != nil:
		u.GID, err = parseID(entry.Gid)
	case hasGroup:
		if u.GID, err = parseID(group); err == nil {
			break
		}
		var g *user.Group
		if g, err = user.LookupGroup(group); err == nil {
			u.GID, err = parseID(g.Gid)
		}
	}
	if err != nil {
		return u, fmt.Errorf("unable to find group %s: no matching entries in group file", group)
	}
	return u, nil
}

// maxID is the largest id: all ones means "none" (chown(2)), and Docker takes none above 1<<31-1.
const maxID = 1<<31 - 1

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID {
		return 0, errors.New("not an id")
	}
	return uint32(n), nil
}

// setProcess reads what is about the command's process and its namespaces' parameters.
func (p *Plan) setProcess(c *Config) (err error) {
	for _, name := range c.CapAdd {
		number, ok := capabilities[strings.TrimPrefix(strings.ToUpper(name), "CAP_")]
		if !ok {
			return usage("CapAdd", "invalid capability: %q (NET_ADMIN, NET_RAW and NET_BIND_SERVICE can be added; userns root has all, over the sandbox's own namespaces)", name)
		}
		p.Caps = append(p.Caps, number)
	}
	if len(p.Caps) > 0 && p.Network == NetworkHost {
		return usage("CapAdd", "conflicting options: cap-add and the network mode (no capability of the sandbox is valid in the host's network)")
	}
	for _, spec := range c.Sysctls {
		s, err := parseSysctl(spec)
		if err != nil {
			return &UsageError{"Sysctls", err}
		}
		if p.Network == NetworkHost {
			return usage("Sysctls", "sysctl %q is not allowed in the hosts network namespace", strings.ReplaceAll(s.Path, "/", "."))
		}
		p.Sysctls = append(p.Sysctls, s)
	}
	if p.StopSignal, err = ParseSignal(cmp.Or(c.StopSignal, "SIGTERM")); err != nil {
		return &UsageError{"StopSignal", err}
	}
	for key := range c.Labels {
		if key == "" {
			return usage("Labels", "invalid label: empty name")
		}
	}
	return nil
}

// CheckSysctl says what is wrong with an entry of Config.Sysctls, or returns nil.
func CheckSysctl(spec string) error {
	_, err := parseSysctl(spec)
	return err
}

// parseSysctl reads "name=value". As sysctl(8) has it, the separator that comes first in the name, a dot or a slash, is the
// separator, and the other one stands for itself: net/ipv4/conf/eth0.1/forwarding.
func parseSysctl(spec string) (Sysctl, error) {
	name, value, ok := strings.Cut(spec, "=")
	if !ok || name == "" {
		return Sysctl{}, fmt.Errorf("sysctl '%s' is not allowed: it must be name=value", spec)
	}
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	parts := strings.Split(path, "/")
	for _, part := range parts {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\x00\n") {
			return Sysctl{}, fmt.Errorf("sysctl '%s' is not allowed", spec)
		}
	}
	if parts[0] != "net" || len(parts) < 2 {
		return Sysctl{}, fmt.Errorf("sysctl '%s' is not allowed: only net.* belongs to the sandbox", spec)
	}
	return Sysctl{path, value}, nil
}

// The first and the last real-time signal that programs may use (signal(7)).
const rtMin, rtMax = 34, 64

// ParseSignal reads a signal's number or name, with or without SIG, also RTMIN+n and RTMAX-n.
func ParseSignal(s string) (syscall.Signal, error) {
	bad := fmt.Errorf("invalid signal: %s", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > rtMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for _, rt := range []struct {
		name, sign string
		from, step int
	}{{"RTMIN", "+", rtMin, 1}, {"RTMAX", "-", rtMax, -1}} {
		rest, ok := strings.CutPrefix(name, rt.name)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			digits, ok := strings.CutPrefix(rest, rt.sign)
			var err error
			if n, err = strconv.Atoi(digits); !ok || err != nil || n < 0 || n > rtMax-rtMin {
				return 0, bad
			}
		}
		return syscall.Signal(rt.from + n*rt.step), nil
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	return 0, bad
}
