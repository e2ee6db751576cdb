package sandbox

import (
	"context"
	"errors"
	"fmt"

	"rootlessnet/internal/hostnet"
	"rootlessnet/internal/state"
	"rootlessnet/plan"
	"rootlessnet/userns"
)

// Exit codes of Run that are not the command's own; the meanings are those of docker run.
const (
	ExitFailure    = 125 // nothing was started, or the sandbox failed
	ExitCannotExec = 126 // the command was found and cannot be executed
	ExitNotFound   = 127 // the command was not found
	ExitSignalBase = 128 // the command was ended by signal n: 128 + n
)

// Init runs the part of this program that belongs inside the namespaces, if that is what the process was started for; it
// does not return then. The package's initialisation calls it.
func Init() { userns.Init() }

func init() { Init() }

// Run runs a command in a sandbox and returns its exit code when the command, everything it has started, and every sandbox
// that has joined its network have ended. The error is nil if the command ran; the code is then the command's own or 128+n. It is
// nil, and the code 128+n, also if signal n came before the command had started (Config.Signals). Otherwise nothing is left behind and the code is ExitFailure, ExitCannotExec or ExitNotFound. When ctx ends, the command is
// killed. Several may run at once.
func Run(ctx context.Context, c plan.Config) (exitCode int, err error) {
	s := newSandbox(c)
	defer s.closeListenerFiles()
	if s.plan, err = plan.Resolve(&s.cfg, hostnet.Routes{}); err != nil {
		return ExitFailure, err
	}
	s.signals.stop = s.plan.StopSignal
	s.logWarnings()
	defer func() { s.close(exitCode, err) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := s.signals.keep(cancel)
	defer ready()
	err = s.prepare(ctx)
	ready()
	if code, yes := s.signals.interrupted(err); yes {
		return code, nil
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return ExitFailure, err
	}
	return s.run(ctx)
}

// run starts the command, and waits for it and for the leases.
func (s *sandbox) run(ctx context.Context) (int, error) {
	streams, err := s.openStreams()
	if err != nil {
		return ExitFailure, err
	}
	defer streams.close()
	// The record says "running" before the command starts: a program that reads the command's first output may rely on it.
	if err := s.record.update(s.describe); err != nil {
		return ExitFailure, err
	}
	if err := s.writeIDFile(); err != nil {
		return ExitFailure, err
	}
	command := userns.Command{Argv: s.cfg.Argv, Env: s.cfg.Env, Dir: s.cfg.Dir, Caps: s.plan.Caps, Terminal: s.cfg.TTY,
		Stdin: streams.in, Stdout: streams.out, Stderr: streams.err}
	if u := s.plan.User; u != nil && (s.plan.UserNS == plan.UserNSAuto || s.plan.Network == plan.ContainerPrefix) {
		command.User = &userns.Credential{UID: u.UID, GID: u.GID}
	}
	pid, err := s.ns.Run(command)
	if err != nil {
		s.removeIDFile()
		var ee *userns.ExecError
		if errors.As(err, &ee) {
			return ee.Code, err
		}
		return ExitFailure, err
	}
	streams.close() // those that are the command's alone now
	s.term.Relay()
	if s.cfg.KeepEnded { // not before: why a command cannot be started is reported to the caller
		if err := s.record.update(func(r *state.Record) { r.Keep = true }); err != nil {
			s.log.Warn("the exit code and the output will not be kept", "err", err)
		}
	}
	if s.network != nil {
		s.network.Follow()
	}
	commandEnded := make(chan struct{})
	if s.cfg.TTY || s.cfg.JobControl {
		s.wg.Go(func() { s.followStops(pid, commandEnded) })
	}
	s.wg.Go(func() { s.signals.forward(s.ns, pid, commandEnded) })
	if s.joined.lease != nil {
		s.wg.Go(s.endWithJoined)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.ns.Close() })
	defer stop()
	if s.cfg.Confine {
		s.wg.Go(s.releaseStartMemory)
	}
	if s.cfg.OnStart != nil {
		s.cfg.OnStart(plan.Started{ID: s.record.id(), Name: s.record.name(), PID: pid})
	}
	code, err := s.ns.Wait()
	close(commandEnded)
	s.finishStreams()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if s.joined.lease != nil {
			err = fmt.Errorf("the network of %s has ended", s.joined.record.Name)
		}
		return ExitFailure, err
	}
	s.linger(ctx, code)
	return code, nil
}

// endWithJoined kills the command when the network it has joined ends, because nothing it does can reach a network then.
func (s *sandbox) endWithJoined() {
	select {
	case <-s.joined.lease.Done():
		s.log.Error("the network of the joined sandbox has ended; the command is killed", "sandbox", s.joined.record.Name)
		_ = s.ns.Close()
	case <-s.end:
	}
}

// linger keeps the network after the command's end while other sandboxes are in it.
func (s *sandbox) linger(ctx context.Context, code int) {
	idle, n := s.leases.drain()
	if n == 0 {
		return
	}
	s.log.Warn(fmt.Sprintf("the command has exited with %d; its network stays for %d that joined it", code, n))
	_ = s.record.update(func(r *state.Record) { r.Status, r.ExitCode = state.Lingering, &code })
	s.signals.waitEnd(ctx, idle)
}
