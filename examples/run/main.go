// Run starts a web server in a sandbox, published on port 8080 of the host's loopback:
//
//	go run ./examples/run &
//	curl http://127.0.0.1:8080/
//
// The server is this program too. It answers each request with the client's address.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"rootlessnet"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	code, err := rootlessnet.Run(ctx, rootlessnet.Config{
		Argv:    []string{"/proc/self/exe", "serve"},
		Publish: []string{"127.0.0.1:8080:80"},
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		OnStart: func(s rootlessnet.Started) {
			fmt.Printf("sandbox %s: http://127.0.0.1:8080/\n", s.Name)
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
	}
	os.Exit(code)
}

// serve is the command in the sandbox. An ordinary user may bind port 80 there.
func serve() {
	server := &http.Server{
		Addr:              ":80",
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello, %s\n", r.RemoteAddr)
		}),
	}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}
