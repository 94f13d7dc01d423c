package main

import (
	"io"
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
)

// logFlags are the flags about logs, of every command that has any.
type logFlags struct{ format, level string }

func (f *logFlags) register(flags *pflag.FlagSet) { commandline.LogFlags(flags, &f.format, &f.level) }

func (f *logFlags) json(w io.Writer) bool { return commandline.LogsJSON(w, f.format) }

func (f *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	return commandline.NewLogger(w, f.format, f.level)
}
