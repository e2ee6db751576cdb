package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"rootlessnet/internal/helper"
	"rootlessnet/internal/rootlessport"
	"rootlessnet/internal/state"
	"rootlessnet/internal/textlog"
	"rootlessnet/internal/watch"
)

// version is set at link time.
var version = "unknown"

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("rootlessport (rootlessnet)", version)
		return
	}
	if len(os.Args) > 1 {
		fail(errors.New("too many arguments"))
	}
	if err := run(os.Stdin); err != nil {
		fail(err)
	}
}

// fail reports the error on standard output, which is where Podman reads it from.
func fail(err error) {
	fmt.Println(err)
	os.Exit(1)
}

func run(stdin io.Reader) error {
	signal.Ignore(syscall.SIGPIPE) // a write to an output that the caller has closed must not end the program
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	c, err := rootlessport.ReadConfig(stdin)
	if err != nil {
		return err
	}
	files, err := helper.Adopt(c.ExitFD, c.ReadyFD)
	if err != nil {
		return err
	}
	exit, ready := files[0], files[1]
	defer exit.Close() // the file is used until then, or its finalizer would close the descriptor
	ended, err := watch.File(exit)
	if err != nil {
		return fmt.Errorf("exit descriptor %d: %w", c.ExitFD, err)
	}
	defer ended.Close()
	log := slog.New(textlog.New(os.Stderr, "rootlessport", slog.LevelWarn))
	h, err := rootlessport.Start(c, helpers, log)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := helper.Ready(ready); err != nil {
		log.Warn(err.Error())
	}
	select {
	case <-ended.C():
	case <-signals:
	}
	return nil
}

// helpers implements rootlessport.Finder: it returns the running sandboxes.
func helpers() (list []rootlessport.Engine) {
	dir, err := state.Open("")
	if err != nil {
		return nil
	}
	records, err := dir.List()
	if err != nil {
		return nil
	}
	for _, r := range records {
		if r.NetNS != 0 && r.Status == state.Running {
			list = append(list, rootlessport.Engine{NetNS: r.NetNS, PID: r.InitPID, Socket: dir.SocketPath(r)})
		}
	}
	return list
}
