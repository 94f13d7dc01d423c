package commandline

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
)

// LogFlags adds the flags about logs.
func LogFlags(flags *pflag.FlagSet, format, level *string) {
	flags.StringVar(format, "log-format", "auto", "auto, text or json; auto is text on a terminal")
	flags.StringVar(level, "log-level", "info", "debug, info, warn or error")
}

// LogsJSON reports whether logs of the format that are written to w are JSON.
func LogsJSON(w io.Writer, format string) bool {
	return format == "json" || format == "auto" && !IsTerminal(w)
}

// NewLogger writes JSON with the names of the Elastic Common Schema, or text for people.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, UsageError(fmt.Errorf("--log-level is debug, info, warn or error, not %q", level))
	}
	switch format {
	case "auto", "text", "json":
	default:
		return nil, UsageError(fmt.Errorf("--log-format is auto, text or json, not %q", format))
	}
	if LogsJSON(w, format) {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: least, ReplaceAttr: ecs})).With("service.name", "levada"), nil
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: least, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.String("t", a.Value.Time().Format("15:04:05.000"))
		}
		return a
	}})), nil
}

// ecs renames slog's own fields.
func ecs(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch a.Key {
	case slog.TimeKey:
		a.Key = "@timestamp"
	case slog.LevelKey:
		return slog.String("log.level", strings.ToLower(a.Value.String()))
	case slog.MessageKey:
		a.Key = "message"
	case "error":
		a.Key = "error.message"
	}
	return a
}
