package textlog

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// Handler is a slog.Handler that writes each record as a line of text. It is safe for concurrent use.
type Handler struct {
	program string
	mu      *sync.Mutex // held while writing to out; shared by derived handlers
	out     io.Writer
	least   slog.Level
	attrs   string // formatted attributes of WithAttrs
	group   string // prefix of attribute names
}

var _ slog.Handler = (*Handler)(nil)

// New returns a Handler that writes records of level least and above to out. program is the name at the beginning of lines.
func New(out io.Writer, program string, least slog.Level) *Handler {
	return &Handler{program: program, mu: new(sync.Mutex), out: out, least: least}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.least }

// Handle implements slog.Handler: it writes one line.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString(h.program + ": ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("WARNING: ")
	default:
		b.WriteString(h.program + ": " + strings.ToLower(r.Level.String()) + ": ")
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		writeAttr(&b, h.group, a)
		return true
	})
	line := OneLine(b.String()) + "\n"
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.out, line)
	return err
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	for _, a := range attrs {
		writeAttr(&b, h.group, a)
	}
	with := *h
	with.attrs += b.String()
	return &with
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
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

// OneLine replaces line breaks in s by \n, so that a message occupies one line.
func OneLine(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }
