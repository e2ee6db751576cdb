package textlog_test

import (
	"bytes"
	"log/slog"
	"testing"

	"rootlessnet/internal/textlog"
)

func TestHandler(t *testing.T) {
	for _, c := range []struct {
		name string
		log  func(l *slog.Logger)
		want string
	}{
		{"below the level", func(l *slog.Logger) { l.Debug("hidden") }, ""},
		{"info", func(l *slog.Logger) { l.Info("ready", "port", 80) }, "prog: info: ready port=80\n"},
		{"warning", func(l *slog.Logger) { l.Warn("slow") }, "WARNING: slow\n"},
		{"error", func(l *slog.Logger) { l.Error("failed", "err", "no route") }, "prog: failed err=no route\n"},
		{"line break", func(l *slog.Logger) { l.Error("a\nb", "k", "c\nd") }, `prog: a\nb k=c\nd` + "\n"},
		{"attributes and groups", func(l *slog.Logger) {
			l.With("a", 1).WithGroup("g").With("b", 2).Error("m", "c", 3, slog.Group("h", "d", 4))
		}, "prog: m a=1 g.b=2 g.c=3 g.h.d=4\n"},
		{"empty group and attribute", func(l *slog.Logger) { l.WithGroup("").Error("m", slog.Attr{}) }, "prog: m\n"},
	} {
		var out bytes.Buffer
		c.log(slog.New(textlog.New(&out, "prog", slog.LevelInfo)))
		if got := out.String(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
