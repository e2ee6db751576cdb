package api

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClient(t *testing.T) {
	_, c := serve(t, newFake(), "", ServerOptions{})
	ctx := t.Context()
	box, err := c.Inspect(ctx)
	if err != nil || box.Name != "web" || len(box.Ports) != 0 {
		t.Fatalf("%+v %v", box, err)
	}
	stats, err := c.Stats(ctx)
	if err != nil || stats.RxBytes != 7 || stats.Counters["tcp.accepted"] != 3 {
		t.Errorf("%+v %v", stats, err)
	}
	if ports, err := c.Ports(ctx); err != nil || ports == nil || len(ports) != 0 {
		t.Errorf("%v %v", ports, err)
	}
	added, err := c.AddPorts(ctx, "8080:80")
	if err != nil || len(added) != 1 || added[0].String() != "0.0.0.0:8080->80/tcp" {
		t.Errorf("%v %v", added, err)
	}
	if removed, err := c.RemovePorts(ctx, "8080:80"); err != nil || len(removed) != 1 || removed[0] != added[0] {
		t.Errorf("%v %v", removed, err)
	}
	var e *Error
	if _, err := c.AddPorts(ctx, "bad"); !errors.As(err, &e) || e.Status != 400 || e.Message != "wrapped: invalid containerPort: bad" {
		t.Errorf("%+v", err)
	}
	if _, err := c.AddPorts(ctx, "broken"); !errors.As(err, &e) || e.Status != 500 {
		t.Errorf("%+v", err)
	}
}

func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, c := serve(t, newFake(), filepath.Join(dir, "api.sock"), ServerOptions{})
	if _, err := c.Inspect(t.Context()); err != nil {
		t.Error(err)
	}
}
