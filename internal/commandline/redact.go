package commandline

import (
	"context"
	"log/slog"

	"github.com/levada-io/levada/internal/redact"
)

// redactHandler removes credentials from messages and attributes, whichever line of the program they come from.
type redactHandler struct{ slog.Handler }

func (h redactHandler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, redact.Text(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(redactAttr(a))
		return true
	})
	return h.Handler.Handle(ctx, clean)
}

func (h redactHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i := range attrs {
		clean[i] = redactAttr(attrs[i])
	}
	return redactHandler{h.Handler.WithAttrs(clean)}
}

func (h redactHandler) WithGroup(name string) slog.Handler {
	return redactHandler{h.Handler.WithGroup(name)}
}

func redactAttr(a slog.Attr) slog.Attr {
	a.Value = a.Value.Resolve()
	switch a.Value.Kind() {
	case slog.KindString:
		return slog.String(a.Key, redact.Text(a.Value.String()))
	case slog.KindGroup:
		group := a.Value.Group()
		clean := make([]slog.Attr, len(group))
		for i := range group {
			clean[i] = redactAttr(group[i])
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(clean...)}
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case error:
			return slog.Any(a.Key, redact.Error(v))
		case []string:
			clean := make([]string, len(v))
			for i := range v {
				clean[i] = redact.Text(v[i])
			}
			return slog.Any(a.Key, clean)
		}
	}
	return a
}
