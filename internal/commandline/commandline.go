// Package commandline is what the programs' command lines have in common: exit codes, flags from the environment, and the flags about logs.
package commandline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/levada-io/levada/internal/redact"
)

// Root makes the command that of a program: its flags are also looked up in the environment, and nothing is said but the error.
func Root(cmd *cobra.Command, version string) *cobra.Command {
	cmd.Version, cmd.SilenceUsage, cmd.SilenceErrors = version, true, true
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return flagsFromEnvironment(cmd.Flags()) }
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return UsageError(err) })
	help := cmd.HelpFunc()
	cmd.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if unknownCommand(cmd) == nil {
			help(cmd, args)
		}
	})
	return cmd
}

// unknownCommand is the error of a group of commands with an argument that is none of them. Cobra says it of the outermost one only, and answers others with
// the help.
func unknownCommand(cmd *cobra.Command) error {
	if cmd.Runnable() || cmd.Flags().NArg() == 0 {
		return nil
	}
	return UsageError(fmt.Errorf("unknown command %q for %q", cmd.Flags().Arg(0), cmd.CommandPath()))
}

// ofVariable marks flags that were set from the environment, with the name of the variable.
const ofVariable = "environment variable"

// Given names a flag for a message, with the variable that it comes from if it was not on the command line.
func Given(f *pflag.Flag) string {
	if of := f.Annotations[ofVariable]; of != nil {
		return fmt.Sprintf("--%s (from the environment variable %s)", f.Name, of[0])
	}
	return "--" + f.Name
}

// Variable is the environment variable of a flag.
func Variable(flag string) string {
	return "LEVADA_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// flagsFromEnvironment sets flags that were not given from LEVADA_ variables.
func flagsFromEnvironment(flags *pflag.FlagSet) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		name := Variable(f.Name)
		value, ok := os.LookupEnv(name)
		if !ok || f.Changed || err != nil {
			return
		}
		if e := flags.Set(f.Name, value); e != nil {
			err = UsageError(fmt.Errorf("environment variable %s is %q, but %s", name, value, expected(f, e)))
			return
		}
		if f.Annotations == nil {
			f.Annotations = map[string][]string{}
		}
		f.Annotations[ofVariable] = []string{name}
	})
	return err
}

// expected says what the flag takes, where the error is Go's own and names only its functions.
func expected(f *pflag.Flag, err error) string {
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		err = e.Unwrap()
	}
	text := err.Error()
	if _, ok := errors.AsType[*strconv.NumError](err); !ok && !strings.HasPrefix(text, "time: ") && !strings.HasPrefix(text, "strconv.") {
		return fmt.Sprintf("--%s refuses it: %s", f.Name, text)
	}
	switch f.Value.Type() {
	case "bool":
		return fmt.Sprintf("--%s takes true or false", f.Name)
	case "duration":
		return fmt.Sprintf("--%s takes a duration, such as 10s or 5m", f.Name)
	}
	return fmt.Sprintf("--%s takes a number, such as %s", f.Name, f.DefValue)
}

// Main executes the program, and ends the process. The command's context ends with SIGINT and SIGTERM, with a SignalError as its cause.
func Main(root *cobra.Command) {
	os.Exit(Execute(withSignals(context.Background()), root))
}

// Execute returns the exit code, and says what the error is. One that is not an ExitError is a problem, unless it is of the arguments.
func Execute(ctx context.Context, root *cobra.Command) int {
	nonNegative(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = unknownCommand(cmd)
	}
	if err == nil {
		return 0
	}
	code := ExitProblems
	if exit, ok := errors.AsType[ExitError](err); ok {
		code, err = exit.Code, exit.Err
	} else if signal, ok := errors.AsType[SignalError](err); ok {
		code = signal.ExitCode()
	} else if !cmd.Runnable() || cmd.ValidateArgs(cmd.Flags().Args()) != nil {
		code = ExitUsage
	}
	if err != nil {
		if wantsJSON(cmd) {
			jsonLogger(root.ErrOrStderr(), slog.LevelInfo).Error("command failed", "event.action", "command-failed", "error", err, "process.exit_code", code)
		} else {
			fmt.Fprintf(root.ErrOrStderr(), "%s: %s\n", root.Name(), PrintableLines(redact.Text(err.Error())))
		}
	}
	return code
}

// wantsJSON reports whether a command writes its errors as JSON, like its logs; also one whose flags could not be read to the end.
func wantsJSON(cmd *cobra.Command) bool {
	f := cmd.Flags().Lookup(logFormat)
	if f == nil {
		return false
	}
	format := f.Value.String()
	if !f.Changed {
		if value, ok := os.LookupEnv(Variable(logFormat)); ok {
			format = value
		}
		for i, arg := range os.Args {
			if value, ok := strings.CutPrefix(arg, "--"+logFormat+"="); ok {
				format = value
			} else if arg == "--"+logFormat && i+1 < len(os.Args) {
				format = os.Args[i+1]
			}
		}
	}
	return isJSON(format)
}

// IsTerminal reports whether it writes to a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
