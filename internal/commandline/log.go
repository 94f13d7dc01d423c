package commandline

import (
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

const logFormat = "log-format"

// LogFlags are the flags about logs, of every command that has any.
type LogFlags struct{ Format, Level string }

// Register adds the flags to a command's.
func (f *LogFlags) Register(flags *pflag.FlagSet) {
	Enum(flags, &f.Format, logFormat, "", "format of everything that is written to standard error; auto is json in Kubernetes and text elsewhere", "auto", "text", "json")
	EnumDefault(flags, &f.Level, "log-level", "", "", "info", "debug", "info", "warn", "error")
}

// JSON reports whether logs are JSON.
func (f *LogFlags) JSON() bool { return isJSON(f.Format) }

func isJSON(format string) bool {
	return format == "json" || format == "auto" && os.Getenv("KUBERNETES_SERVICE_HOST") != ""
}

// Logger writes JSON with the names of the Elastic Common Schema, or text for people. Durations are written as 1m30s in both.
func (f *LogFlags) Logger(w io.Writer) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(f.Level)); err != nil {
		return nil, Usagef("--log-level is debug, info, warn or error, not %q", f.Level)
	}
	if f.JSON() {
		return jsonLogger(w, least), nil
	}
	return slog.New(redactHandler{slog.NewTextHandler(w, &slog.HandlerOptions{Level: least, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.String("t", a.Value.Time().Format("15:04:05.000"))
		}
		return a
	}})}), nil
}

// jsonLogger writes JSON with the names of the Elastic Common Schema.
func jsonLogger(w io.Writer, least slog.Level) *slog.Logger {
	return slog.New(redactHandler{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: least, ReplaceAttr: ecs})}).With("ecs.version", ecsVersion, "service.name", "levada")
}

const ecsVersion = "8.11.0"

// ecs renames slog's own fields. A duration would be a number of nanoseconds.
func ecs(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.String())
	}
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
	case "error", "reason":
		if a.Key == "error" {
			a.Key = "error.message"
		}
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(err.Error()) // also of an error that has fields of its own
		}
	case "container": // an object there
		a.Key = "container.name"
	case "url":
		a.Key = "url.full"
	}
	return a
}
