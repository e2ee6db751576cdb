package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// logHandler prints records the way people expect of a command: warnings as docker run prints them, everything else
// behind the program's name. It must not share a terminal with the command more than asked for, so one record is one
// line.
type logHandler struct {
	mu    *sync.Mutex // of out
	out   io.Writer
	least slog.Level
	attrs string // already formatted
	group string // prefix of attribute names
}

func newLogHandler(out io.Writer, least slog.Level) *logHandler {
	return &logHandler{mu: new(sync.Mutex), out: out, least: least}
}

func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.least }

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString("rootless-run: ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("WARNING: ")
	default:
		b.WriteString("rootless-run: " + strings.ToLower(r.Level.String()) + ": ")
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		writeAttr(&b, h.group, a)
		return true
	})
	line := oneLine(b.String()) + "\n"
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.out, line)
	return err
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	for _, a := range attrs {
		writeAttr(&b, h.group, a)
	}
	with := *h
	with.attrs += b.String()
	return &with
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	with := *h
	with.group += name + "."
	return &with
}

func writeAttr(b *strings.Builder, group string, a slog.Attr) {
	if a.Equal(slog.Attr{}) {
		return
	}
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range v.Group() {
			writeAttr(b, group, member)
		}
		return
	}
	b.WriteString(" " + group + a.Key + "=" + v.String())
}
