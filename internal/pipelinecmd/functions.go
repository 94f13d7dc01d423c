package pipelinecmd

import (
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/standalone"
)

// functionFlags say what functions get of this process.
type functionFlags struct {
	env  []string
	user string
}

func (f *functionFlags) register(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.env, "function-env", nil, "NAME[,NAME|PREFIX_*]: variables of this process that functions get; without it only PATH, HOME, TMPDIR, LANG, LC_*, TZ and NUMAFLOW_*")
	flags.StringVar(&f.user, "function-user", "", "NAME, UID or UID:GID: the user that functions run as; needs root")
}

// apply checks the flags and puts them into the configuration of a run.
func (f *functionFlags) apply(cfg *standalone.Config) error {
	if err := function.CheckVariables(f.env); err != nil {
		return commandline.Usagef("--function-env %w", err)
	}
	cfg.FunctionEnv = f.env
	if f.user == "" {
		return nil
	}
	u, err := function.ParseUser(strings.TrimSpace(f.user))
	if err != nil {
		return commandline.Usagef("--function-user: %w", err)
	}
	cfg.FunctionUser = u
	return nil
}

// refuse prints what of the manifests would not start or is ignored, and returns an error if something would not start.
func (f *functionFlags) refuse(cfg *standalone.Config, stderr io.Writer, jsonLog *slog.Logger) error {
	if err := f.apply(cfg); err != nil {
		return err
	}
	problems := standalone.Check(*cfg)
	problems.Sort()
	switch {
	case len(problems) == 0:
	case jsonLog != nil:
		logProblems(jsonLog, problems)
	default:
		if err := writeText(stderr, problemPage{problems: problems, manifests: len(cfg.Objects)}); err != nil {
			return err
		}
	}
	if problems.HasErrors() {
		return commandline.Problems()
	}
	return nil
}

// checkStart adds what keeps a run from starting.
func checkStart(problems manifest.Problems, objects []manifest.Object, functions []string, secretDir string) (manifest.Problems, error) {
	commands, err := parseFunctions(functions, objects)
	if err != nil {
		return nil, commandline.UsageError(err)
	}
	problems = append(problems, standalone.Check(standalone.Config{Objects: objects, Commands: commands, SecretDir: secretDir})...)
	problems.Sort()
	return problems, nil
}
