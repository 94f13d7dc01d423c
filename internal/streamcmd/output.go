package streamcmd

import (
	"io"
	"strings"

	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
)

// outputFlag is -o.
type outputFlag struct{ kind string }

func (f *outputFlag) register(flags *pflag.FlagSet) {
	commandline.Output(flags, &f.kind, "text", "json")
}

func (f *outputFlag) json() bool { return f.kind == "json" }

// writeLines prints values as JSON, a line each.
func writeLines[T any](w io.Writer, values []T) error {
	for i := range values {
		if err := commandline.WriteJSON(w, false, &values[i]); err != nil {
			return err
		}
	}
	return nil
}

// named reads NAME=VALUE flags.
func named(flag, expected string, values []string, optional bool) (names []string, value map[string]string, err error) {
	value = map[string]string{}
	for _, v := range values {
		name, rest, ok := strings.Cut(v, "=")
		if name == "" || ok && rest == "" || !ok && !optional {
			return nil, nil, commandline.Usagef("%s %q: expected %s", flag, v, expected)
		}
		if _, twice := value[name]; twice {
			return nil, nil, commandline.Usagef("%s: stream %s is given twice", flag, name)
		}
		names = append(names, name)
		value[name] = rest
	}
	return names, value, nil
}
