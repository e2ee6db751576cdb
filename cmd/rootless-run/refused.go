package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"rootlessnet"
)

// refusal is the error of a flag of docker run that has no meaning here.
type refusal struct{ flag, instead string }

func (r *refusal) Error() string { return fmt.Sprintf("%s is not supported: %s", r.flag, r.instead) }

// What to do instead, for several flags each.
const (
	insteadImage    = "there are no images; the command is a program of this host"
	insteadFiles    = "the command sees this host's files at their own paths, with your rights"
	insteadLimits   = "limit it from outside, as by: systemd-run --user --scope -p MemoryMax=512M -p CPUQuota=50% rootless-run ..."
	insteadDevices  = "the command sees this host's devices, with your rights"
	insteadSandbox  = "--network container:NAME shares the network of another sandbox"
	insteadUlimit   = "set it before, as by: ulimit -n 4096; rootless-run ..."
	insteadOwn      = "the command always has one of its own"
	insteadHealth   = "there are no health checks; rootless-net exec runs a command inside"
	insteadSecurity = "the command has your rights and no more; --userns keep-id leaves it no capability"
)

// refused are the flags of docker run without a meaning here. A flag that begins with a letter and a comma has that shorthand.
var refused = map[string]string{
	"v,volume":           insteadFiles + " (for the version: --version)",
	"mount":              insteadFiles,
	"volume-driver":      insteadFiles,
	"volumes-from":       insteadFiles,
	"tmpfs":              insteadFiles + "; with --userns root it can mount what it needs",
	"shm-size":           insteadFiles,
	"storage-opt":        insteadFiles,
	"m,memory":           insteadLimits,
	"memory-reservation": insteadLimits,
	"memory-swap":        insteadLimits,
	"memory-swappiness":  insteadLimits,
	"kernel-memory":      insteadLimits,
	"cpus":               insteadLimits,
	"c,cpu-shares":       insteadLimits,
	"cpu-period":         insteadLimits,
	"cpu-quota":          insteadLimits,
	"cpu-rt-period":      insteadLimits,
	"cpu-rt-runtime":     insteadLimits,
	"cpuset-cpus":        "choose the processors before, as by: taskset -c 0,1 rootless-run ...",
	"cpuset-mems":        insteadLimits,
	"blkio-weight":       insteadLimits,
	"pids-limit":         "limit it from outside, as by: systemd-run --user --scope -p TasksMax=100 rootless-run ...",
	"cgroup-parent":      insteadLimits,
	"cgroupns":           insteadLimits,
	"oom-kill-disable":   insteadLimits,
	"oom-score-adj":      "set it before, as by: choom -n 500 -- rootless-run ...",
	"ulimit":             insteadUlimit,
	"privileged":         "no flag gives the command more than your rights on this host; --userns root gives it all capabilities over namespaces of its own",
	"cap-drop":           insteadSecurity,
	"security-opt":       insteadSecurity,
	"group-add":          "the command keeps your groups",
	"device":             insteadDevices,
	"device-cgroup-rule": insteadDevices,
	"device-read-bps":    insteadLimits,
	"device-read-iops":   insteadLimits,
	"device-write-bps":   insteadLimits,
	"device-write-iops":  insteadLimits,
	"gpus":               insteadDevices,
	"entrypoint":         "give the program as the command; " + insteadImage,
	"platform":           insteadImage,
	"pull":               insteadImage,
	"q,quiet":            insteadImage,
	"runtime":            insteadImage,
	"isolation":          insteadImage,
	"restart":            "a service manager restarts it, as by: systemd-run --user -p Restart=always rootless-run ...",
	"stop-timeout":       "rootless-net stop has the flag --time",
	"network-alias":      insteadSandbox,
	"link-local-ip":      "the interface has its IPv6 link-local address; --ip and --ip6 choose the others",
	"domainname":         "give the whole name to --hostname",
	"ipc":                insteadOwn,
	"uts":                insteadOwn,
	"a,attach":           "the command has the standard streams of rootless-run; redirect those",
	"detach-keys":        "a terminal cannot be detached; --detach starts in the background",
	"log-opt":            "the log keeps the last megabytes; redirect the output of the command to keep more",
	"annotation":         "--label is for that",
	"health-cmd":         insteadHealth,
	"health-interval":    insteadHealth,
	"health-retries":     insteadHealth,
	"health-timeout":     insteadHealth,
	"no-healthcheck":     insteadHealth,
	"use-api-socket":     "there is no daemon",
}

// refuseFlags adds the flags of refused, hidden.
func refuseFlags(f *pflag.FlagSet) {
	for name, instead := range refused {
		shorthand := ""
		if len(name) > 2 && name[1] == ',' {
			shorthand, name = name[:1], name[2:]
		}
		shown := "--" + name
		if shorthand != "" {
			shown = "-" + shorthand + ", " + shown
		}
		flag := f.VarPF(refusedFlag{&refusal{shown, instead}}, name, shorthand, "")
		flag.Hidden, flag.NoOptDefVal = true, "refused" // whether a value follows does not matter
	}
}

// refusedFlag is the value of a flag that cannot be set.
type refusedFlag struct{ r *refusal }

func (v refusedFlag) Set(string) error { return v.r }
func (v refusedFlag) String() string   { return "" }
func (v refusedFlag) Type() string     { return "refused" }

// imageForm is the name of an image with a tag, a digest or a path; commonImages are some without. It is compiled when it is needed:
// initialisation is part of every start.
const imageForm = `^[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]*|@sha256:[0-9a-f]+)?$`

var commonImages = []string{"alpine", "busybox", "debian", "fedora", "golang", "hello-world", "httpd", "mariadb", "memcached", "mongo", "mysql", "nginx",
	"node", "postgres", "python", "rabbitmq", "redis", "registry", "traefik", "ubuntu"}

// notFound is a command that does not exist.
type notFound struct {
	name string
	err  error
}

func (e *notFound) Error() string { return e.err.Error() }
func (e *notFound) Unwrap() error { return e.err }

// withName adds to the error of a command that was not found its name, so that imageHint can look at it.
func withName(code int, err error, argv []string) error {
	if err == nil || code != rootlessnet.ExitNotFound || len(argv) == 0 {
		return err
	}
	return &notFound{argv[0], err}
}

// imageHint explains that there are no images, if the command that was not found looks like one.
func imageHint(err error) string {
	var missing *notFound
	if !errors.As(err, &missing) {
		return ""
	}
	name := missing.name
	if !slices.Contains(commonImages, name) && !(strings.ContainsAny(name, ":/") && regexp.MustCompile(imageForm).MatchString(name)) {
		return ""
	}
	return fmt.Sprintf("There are no images: the command is a program of this host. An image's program is run with this network by an engine, "+
		"as by: podman run --network slirp4netns %s (see docs/embedding.md).", name)
}
