package commandline

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// checked is the value of a flag with a rule that is applied whenever it is set: on the command line and from the environment. The flag's package names the
// flag in the error, and flagsFromEnvironment the variable.
type checked struct {
	pflag.Value
	rule func(set pflag.Value) error
}

func (c *checked) Set(s string) error {
	before := c.String()
	if err := c.Value.Set(s); err != nil {
		return err
	}
	if err := c.rule(c.Value); err != nil {
		_ = c.Value.Set(before)
		return err
	}
	return nil
}

func bind(flags *pflag.FlagSet, name string, rule func(pflag.Value) error) {
	f := flags.Lookup(name)
	if f == nil {
		panic("commandline: no flag --" + name)
	}
	f.Value = &checked{f.Value, rule}
}

// OneOf makes every other value of a text flag a usage error.
func OneOf(flags *pflag.FlagSet, name string, values ...string) {
	bind(flags, name, func(v pflag.Value) error {
		if !slices.Contains(values, v.String()) {
			return fmt.Errorf("must be %s", orList(values))
		}
		return nil
	})
}

// Enum adds a text flag that takes one of values; the first is the default. usage goes on behind the list of values, where it is not empty.
func Enum(flags *pflag.FlagSet, to *string, name, shorthand, usage string, values ...string) {
	EnumDefault(flags, to, name, shorthand, usage, values[0], values...)
}

// EnumDefault is Enum for values that have an order of their own, of which the default is not the first.
func EnumDefault(flags *pflag.FlagSet, to *string, name, shorthand, usage, preset string, values ...string) {
	if usage != "" {
		usage = ": " + usage
	}
	flags.StringVarP(to, name, shorthand, preset, orList(values)+usage)
	OneOf(flags, name, values...)
}

// Output adds the flag for the format of what a command prints, --output or -o.
func Output(flags *pflag.FlagSet, to *string, formats ...string) {
	Enum(flags, to, "output", "o", "", formats...)
}

func orList(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return strings.Join(values[:len(values)-1], ", ") + " or " + values[len(values)-1]
}

// Between bounds a flag that is a number.
func Between(flags *pflag.FlagSet, name string, least, most int64) {
	bind(flags, name, func(v pflag.Value) error {
		n, err := strconv.ParseInt(v.String(), 10, 64)
		if err == nil && (n < least || n > most) {
			return fmt.Errorf("must be from %d to %d", least, most)
		}
		return err
	})
}

// AtLeast bounds a flag that is a duration from below.
func AtLeast(flags *pflag.FlagSet, name string, least time.Duration) {
	bind(flags, name, func(v pflag.Value) error {
		d, err := time.ParseDuration(v.String())
		if err == nil && d < least {
			return fmt.Errorf("must be %v or more", least)
		}
		return err
	})
}

// AnyNumber exempts a flag from the rule that numbers and durations are not negative.
func AnyNumber(flags *pflag.FlagSet, name string) {
	bind(flags, name, func(pflag.Value) error { return nil })
}

// nonNegative applies to all numbers and durations of a command and those below it that have no rule of their own: nothing that a negative one could mean is
// meant by one.
func nonNegative(cmd *cobra.Command) {
	rule := func(f *pflag.Flag) {
		if _, ok := f.Value.(*checked); ok || f.Value.Type() == "" {
			return
		}
		switch f.Value.Type() {
		case "duration", "int", "int32", "int64", "float64":
			f.Value = &checked{f.Value, func(v pflag.Value) error {
				if strings.HasPrefix(v.String(), "-") {
					return fmt.Errorf("must be 0 or more")
				}
				return nil
			}}
		}
	}
	cmd.Flags().VisitAll(rule)
	cmd.PersistentFlags().VisitAll(rule)
	for _, c := range cmd.Commands() {
		nonNegative(c)
	}
}
