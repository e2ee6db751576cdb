package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// probeArg0 is the argv[0] of a child process that runs probes.
const probeArg0 = "rootless-net-doctor-probe"

// Roles of a child process, its argv[1].
const (
	roleInside  = "inside"  // runs all insideProbes
	rolePID     = "pid"     // mounts a procfs
	roleHold    = "hold"    // waits for the end of standard input
	roleNothing = "nothing" // exits at once: the clone itself is tested
	roleSeccomp = "seccomp" // loads a seccomp filter
)

const (
	// childAnswerMax is the maximum size in bytes of a child's answer, which has a few KiB.
	childAnswerMax = 64 << 10
	// answerMargin is how much earlier than the parent a child stops to wait for its probes, so that its answer arrives in time.
	answerMargin = 300 * time.Millisecond
	// killDelay is how long the parent waits for the end of a killed child's output before it closes the pipe.
	killDelay = 100 * time.Millisecond
)

const insideFlags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS |
	syscall.CLONE_NEWIPC

// IsProbe reports whether Run started this process to run probes. Then main must call ProbeMain and nothing else.
func IsProbe() bool { return len(os.Args) > 0 && os.Args[0] == probeArg0 }

// ProbeMain runs the probes of a child process and exits. main must call it before it does anything else:
//
//	if doctor.IsProbe() {
//		doctor.ProbeMain()
//	}
func ProbeMain() {
	role, timeout := "", DefaultTimeout-answerMargin
	if len(os.Args) > 2 {
		role = os.Args[1]
		if d, err := time.ParseDuration(os.Args[2]); err == nil {
			timeout = d
		}
	}
	found := map[string]finding{}
	switch role {
	case roleInside:
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		found = runInside(ctx)
	case rolePID:
		found["pid-namespace"] = probePIDNamespace()
	case roleSeccomp:
		found["seccomp"] = loadFilter()
	case roleHold:
		io.Copy(io.Discard, os.Stdin) // ends when the parent closes the pipe or exits
	case roleNothing:
	default:
		fmt.Fprintln(os.Stderr, probeArg0+": this process is started by rootless-net doctor only")
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// command returns a command that runs this binary with a role, in new namespaces. With maps, uid and gid 0 inside are those of the
// caller.
func command(ctx context.Context, role string, flags uintptr, maps bool) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	timeout := DefaultTimeout
	if t, ok := ctx.Deadline(); ok {
		timeout = time.Until(t)
	}
	cmd.Args = []string{probeArg0, role, (timeout - answerMargin).String()}
	cmd.Env = []string{"GOMAXPROCS=2", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = killDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if maps {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd
}

// runChild runs a child to its end and returns its findings. An error means that the child could not be started or gave no answer.
func runChild(ctx context.Context, role string, flags uintptr) (map[string]finding, error) {
	// The kernel sends the parent-death signal when the thread that forked ends (prctl(2), PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := command(ctx, role, flags, flags&syscall.CLONE_NEWUSER != 0)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		out.Close()
		return nil, err
	}
	b, _ := io.ReadAll(io.LimitReader(out, childAnswerMax))
	werr := cmd.Wait()
	found := map[string]finding{}
	if err := json.Unmarshal(b, &found); err != nil {
		if ctx.Err() != nil {
			return nil, errors.New("did not answer in time")
		}
		return nil, errors.Join(werr, fmt.Errorf("no answer from the probe: %w", err))
	}
	return found, nil
}

// childProbe runs the child of a role. If its namespaces cannot be created it finds out which of them cannot.
func childProbe(ctx context.Context, role string) map[string]finding {
	if role == rolePID {
		found, err := runChild(ctx, role, syscall.CLONE_NEWUSER|syscall.CLONE_NEWPID|syscall.CLONE_NEWNS)
		if err != nil {
			return map[string]finding{"pid-namespace": failed("clone", err)}
		}
		return found
	}
	found, err := runChild(ctx, role, insideFlags)
	if err != nil {
		return blame(err, func(flags uintptr) error {
			_, err := runChild(ctx, roleNothing, flags)
			return err
		})
	}
	if f := found["user-namespace"]; f.Status != OK {
		// The clone worked but gave no capabilities. The other probes failed for that reason, so their findings are replaced.
		f.Fix = userNamespaceFix(sysctl)
		found = untriedInside("the user namespace gives no capabilities", f.Fix)
		found["user-namespace"] = f
	}
	return found
}

// untriedInside returns findings that mark all checks inside as untried, with one reason and fix.
func untriedInside(reason, fix string) map[string]finding {
	found := map[string]finding{}
	for _, p := range insideProbes() {
		for _, n := range p.names {
			found[n] = finding{Status: Untried, Detail: reason, Fix: fix}
		}
	}
	return found
}

// blame explains why a clone with all namespaces failed with the error all: it tries the namespaces one at a time. All other checks
// inside are untried.
func blame(all error, try func(flags uintptr) error) map[string]finding {
	reason := failed("no sandbox to test it in", all).Detail
	if err := try(syscall.CLONE_NEWUSER); err != nil {
		f := failed("clone", err)
		f.Fix = userNamespaceFix(sysctl)
		found := untriedInside(reason, f.Fix)
		found["user-namespace"] = f
		return found
	}
	found := untriedInside(reason, "")
	found["user-namespace"] = okf("a clone works")
	for _, n := range []struct {
		name  string
		flags uintptr
	}{
		{"network-namespace", syscall.CLONE_NEWNET},
		{"mount-namespace", syscall.CLONE_NEWNS},
		{"uts-ipc-namespace", syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC},
	} {
		if err := try(syscall.CLONE_NEWUSER | n.flags); err != nil {
			found[n.name] = failed("clone", err)
		} else {
			found[n.name] = okf("a clone works")
		}
	}
	return found
}

// userNamespaceFix returns the fix for the setting that forbids user namespaces, or capabilities in them. sysctl returns the value
// of a sysctl.
func userNamespaceFix(sysctl func(string) string) string {
	switch {
	case sysctl("user/max_user_namespaces") == "0":
		return "sudo sysctl -w user.max_user_namespaces=28633"
	case sysctl("kernel/unprivileged_userns_clone") == "0": // Debian's patch
		return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1": // Ubuntu from 23.10
		return "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
	case selfStatus("Seccomp") == "2":
		return fixFilter
	}
	return "sudo sysctl -w user.max_user_namespaces=28633"
}
