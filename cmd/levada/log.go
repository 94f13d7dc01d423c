package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
)

// logFlags are the flags about logs, of every command that has any.
type logFlags struct{ format, level string }

func (f *logFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.format, "log-format", "auto", "auto, text or json; auto is text on a terminal")
	flags.StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
}

func (f *logFlags) json(w io.Writer) bool {
	return f.format == "json" || f.format == "auto" && !isTerminal(w)
}

// logger writes JSON with the names of the Elastic Common Schema, or text for people.
func (f *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, exitError{exitUsage, fmt.Errorf("--log-level is debug, info, warn or error, not %q", f.level)}
	}
	switch f.format {
	case "auto", "text", "json":
	default:
		return nil, exitError{exitUsage, fmt.Errorf("--log-format is auto, text or json, not %q", f.format)}
	}
	if f.json(w) {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: ecs})).With("service.name", "levada"), nil
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
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
