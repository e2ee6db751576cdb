package userns

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"rootlessnet/netns"
)

// Network selects the network namespace of the command.
type Network string

// Values of Network; the zero value is NetworkNew.
const (
	NetworkNew  Network = "new"  // its own, with lo and the uplink
	NetworkHost Network = "host" // the caller's
	NetworkNone Network = "none" // its own, with lo only
	NetworkJoin Network = "join" // that of Config.JoinPID
	// NetworkAttach is the namespace of Config.Target, with a link and nothing else: no command, no files, no other namespace.
	NetworkAttach Network = "attach"
)

// IDMap selects the user and group ids of the command inside its user namespace.
type IDMap string

// Values of IDMap; the zero value is IDMapRoot.
const (
	IDMapRoot   IDMap = "root"    // the caller's uid and gid are 0 inside
	IDMapKeepID IDMap = "keep-id" // the caller's uid and gid are the same inside; the command holds no capability
	// IDMapAuto is IDMapRoot with the user's subordinate ranges mapped from 1 on, by newuidmap and newgidmap. Without ranges
	// or without these tools it is IDMapRoot, with a warning.
	IDMapAuto IDMap = "auto"
)

// Files is what the sandbox sees as its name-service configuration. nil leaves a file as it is on the host.
type Files struct {
	ResolvConf []byte // text of /etc/resolv.conf
	Hosts      []byte // text of /etc/hosts
	Hostname   string // "" leaves it; UpdateFiles ignores it
}

// Config describes a sandbox. The zero value is a new network with an uplink of unaddressed eth0, and uid 0 inside.
type Config struct {
	Network      Network
	IDMap        IDMap // ignored by NetworkJoin, where the map is the target's
	PIDNamespace bool  // a new pid namespace, with its own /proc
	// JoinPID is the init pid of the sandbox that NetworkJoin joins: its user and network namespaces, and copies of its
	// mount and UTS namespaces.
	JoinPID int
	// Target is what NetworkAttach attaches to. It remains the caller's to close, and is not needed after Start.
	Target *Target
	// Link is the uplink of NetworkNew and NetworkAttach.
	Link  netns.Link
	Files Files
	// Sysctls are kernel parameters below /proc/sys, with their values. They are written after the link has been configured.
	Sysctls []Sysctl
	// ReadOnly makes the mounts of the mount namespace read-only, except /proc, /sys, /dev, what is below them, and Hidden.
	ReadOnly bool
	// Hidden directories are covered by empty private ones. Absolute; those that do not exist are skipped.
	Hidden []string
	Logger *slog.Logger // nil discards
}

// Sysctl is one kernel parameter.
type Sysctl struct {
	Path  string `json:"path"` // below /proc/sys
	Value string `json:"value"`
}

// Credential is a user of the user namespace. The supplementary groups stay the caller's.
type Credential struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Command is what Run starts.
type Command struct {
	Argv []string // Argv[0] is looked up in the PATH of Env unless it has a slash
	Env  []string // nil: the caller's
	Dir  string   // "": the caller's working directory
	// User is the command's; nil: the one that the id map makes of the caller. Needs an id map that has it.
	User *Credential
	// Caps are the numbers of ambient capabilities of the command.
	Caps []int
	// Terminal makes Stdin, a terminal, the controlling terminal of a new session of the command.
	Terminal bool
	// nil is /dev/null. The caller closes them.
	Stdin, Stdout, Stderr *os.File
}

// maxHostname is __NEW_UTS_LEN.
const maxHostname = 64

// withDefaults returns c with its zero fields filled in, or an error that says which field cannot work.
func (c Config) withDefaults() (Config, error) {
	if c.Network == "" {
		c.Network = NetworkNew
	}
	if c.IDMap == "" {
		c.IDMap = IDMapRoot
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	bad := func(format string, args ...any) (Config, error) {
		return c, &Error{Op: "configuration", Err: fmt.Errorf(format, args...)}
	}
	switch c.Network {
	case NetworkNew, NetworkHost, NetworkNone:
	case NetworkJoin:
		if c.JoinPID <= 0 {
			return bad("network %q needs the pid of a sandbox", c.Network)
		}
	case NetworkAttach:
		if c.Target == nil {
			return bad("network %q needs a target", c.Network)
		}
	default:
		return bad("unknown network %q", c.Network)
	}
	switch c.IDMap {
	case IDMapRoot, IDMapKeepID, IDMapAuto:
	default:
		return bad("unknown id map %q", c.IDMap)
	}
	if len(c.Files.Hostname) > maxHostname {
		return bad("host name longer than %d bytes", maxHostname)
	}
	for _, d := range c.Hidden {
		if !filepath.IsAbs(d) {
			return bad("hidden directory %q is not absolute", d)
		}
	}
	if c.Network != NetworkNew && c.Network != NetworkAttach {
		return c, nil
	}
	var err error
	if c.Link, err = c.Link.WithDefaults(); err != nil {
		return c, &Error{Op: "configuration", Err: err}
	}
	return c, nil
}
