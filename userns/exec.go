package userns

import (
	"context"
	"errors"
	"log/slog"
	"os"
)

// ExecIn runs a command in every namespace of the running sandbox whose init has the pid target, with the files of c and in the
// caller's session and process group, and waits for it. When ctx ends, the command is killed. A caller that forwards signals
// to the command uses Enter instead.
func ExecIn(ctx context.Context, target int, c Command) (exitCode int, err error) {
	s, err := Enter(ctx, target)
	if err != nil {
		return CodeFailure, err
	}
	defer s.Close()
	if _, err := s.Run(c); err != nil {
		var ee *ExecError
		if errors.As(err, &ee) {
			return ee.Code, err
		}
		return CodeFailure, err
	}
	stop := context.AfterFunc(ctx, s.sock.close)
	defer stop()
	code, err := s.Wait()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return code, err
}

// Enter returns a Sandbox for one more command in every namespace of the running sandbox whose init has the pid target. Closing
// it ends that command only; files and link are the target's.
func Enter(ctx context.Context, target int) (*Sandbox, error) {
	s, err := launch(slog.New(slog.DiscardHandler), func(sock *os.File) (*child, error) {
		return spawnJoin(target, joinAll, false, sock)
	})
	if err != nil {
		return nil, err
	}
	s.moved = true
	if err := s.setup(ctx, &setupBody{Network: NetworkJoin, Enter: true}); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}
