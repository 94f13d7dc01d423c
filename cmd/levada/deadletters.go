package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/standalone"
)

func newDeadLettersCommand() *cobra.Command {
	var dataDir, output string
	var broker brokerFlags
	cmd := &cobra.Command{
		Use: "deadletters", Aliases: []string{"deadletter", "dlq"},
		Short: "Look at messages that were put aside, and give them to their vertex again",
		Long: `A message that ends its function again and again, is nacked too often or fails all retries is put aside with the evidence, and the rest goes on.
These commands work while "levada run" uses the data directory, and when nothing does.`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&dataDir, "data", "", "data directory of levada run (required)")
	broker.register(flags, "URL of the broker, if it is not in the data directory")
	flags.StringVarP(&output, "output", "o", "text", "text or json")
	commandline.OneOf(flags, "output", "text", "json")

	open := func(cmd *cobra.Command) (standalone.DeadLetters, error) {
		if dataDir == "" {
			return nil, commandline.ExitError{Code: commandline.ExitUsage, Err: errors.New("name the data directory with --data: levada run prints it when it starts")}
		}
		options, err := broker.options(cmd.Flags())
		if err != nil {
			return nil, err
		}
		return standalone.OpenDeadLetters(cmd.Context(), dataDir, broker.url, options...)
	}

	var pipeline, vertex string
	list := &cobra.Command{
		Use: "list", Short: "List what was put aside", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := open(cmd)
			if err != nil {
				return err
			}
			defer d.Close()
			letters, err := d.List(cmd.Context(), pipeline, vertex)
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				for i := range letters {
					if err := e.Encode(&letters[i]); err != nil {
						return err
					}
				}
				return nil
			}
			return listLetters(cmd.OutOrStdout(), letters)
		},
	}
	list.Flags().StringVar(&pipeline, "pipeline", "", "only of this pipeline")
	list.Flags().StringVar(&vertex, "vertex", "", "only of this vertex")

	show := &cobra.Command{
		Use: "show PIPELINE/NAME", Short: "Show one with its payload and evidence", Args: oneLetter,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := open(cmd)
			if err != nil {
				return err
			}
			defer d.Close()
			pipeline, name, err := letterName(args[0])
			if err != nil {
				return err
			}
			l, err := d.Get(cmd.Context(), pipeline, name)
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(l)
			}
			return showLetter(cmd.OutOrStdout(), l)
		},
	}
	act := func(use, short, done string, do func(standalone.DeadLetters, *cobra.Command, string, string) error) *cobra.Command {
		var all bool
		var ofPipeline, ofVertex string
		c := &cobra.Command{
			Use: use, Short: short,
			RunE: func(cmd *cobra.Command, args []string) error {
				if all == (len(args) > 0) {
					return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("%s needs the names of letters (PIPELINE/NAME), or --all", cmd.Name())}
				}
				d, err := open(cmd)
				if err != nil {
					return err
				}
				defer d.Close()
				if all {
					letters, err := d.List(cmd.Context(), ofPipeline, ofVertex)
					if err != nil {
						return err
					}
					for i := range letters {
						args = append(args, letters[i].Pipeline+"/"+letters[i].Name)
					}
				}
				for _, a := range args {
					pipeline, name, err := letterName(a)
					if err != nil {
						return err
					}
					if err := do(d, cmd, pipeline, name); err != nil {
						return fmt.Errorf("%s: %w", a, err)
					}
					fmt.Fprintln(cmd.OutOrStdout(), done, a)
				}
				return nil
			},
		}
		c.Flags().BoolVar(&all, "all", false, "all of them")
		c.Flags().StringVar(&ofPipeline, "pipeline", "", "with --all: only of this pipeline")
		c.Flags().StringVar(&ofVertex, "vertex", "", "with --all: only of this vertex")
		return c
	}
	cmd.AddCommand(list, show,
		act("replay PIPELINE/NAME...", "Give messages to their vertex again, as new ones, and remove them here", "replayed", func(d standalone.DeadLetters, cmd *cobra.Command, p, n string) error {
			return d.Replay(cmd.Context(), p, n)
		}),
		act("drop PIPELINE/NAME...", "Remove messages for good", "dropped", func(d standalone.DeadLetters, cmd *cobra.Command, p, n string) error {
			return d.Drop(cmd.Context(), p, n)
		}))
	return cmd
}

func oneLetter(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return commandline.ExitError{Code: commandline.ExitUsage, Err: errors.New("name one dead letter as PIPELINE/NAME; levada deadletters list shows them")}
	}
	return nil
}

func letterName(arg string) (pipeline, name string, err error) {
	pipeline, name, ok := strings.Cut(arg, "/")
	if !ok || pipeline == "" || name == "" {
		return "", "", commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("%q is no name of a dead letter: expected PIPELINE/NAME as levada deadletters list shows them", arg)}
	}
	return pipeline, name, nil
}

func listLetters(out io.Writer, letters []deadletter.Letter) error {
	if len(letters) == 0 {
		fmt.Fprintln(out, "no dead letters")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tREASON\tATTEMPTS\tBURIED\tMESSAGE\tERROR")
	for i := range letters {
		l := &letters[i]
		fmt.Fprintf(w, "%s/%s\t%s\t%d\t%s\t%s\t%s\n", l.Pipeline, l.Name, l.Failure.Reason, l.Failure.Attempts, l.Buried.Local().Format(time.DateTime), l.ID, firstLine(l.Failure.Error))
	}
	return w.Flush()
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return printable(s)
}

func showLetter(out io.Writer, l *standalone.LetterView) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	field := func(name string, value any) { fmt.Fprintf(w, "%s:\t%v\n", name, value) }
	field("name", l.Pipeline+"/"+l.Name)
	field("message", l.ID)
	field("reason", l.Failure.Reason)
	field("error", printable(l.Failure.Error))
	field("attempts", fmt.Sprintf("%d, of which it failed %d alone", l.Failure.Attempts, l.Failure.ConfirmedAlone))
	if l.Failure.Signal != "" {
		field("signal", l.Failure.Signal)
	}
	if l.Failure.ExitCode > 0 {
		field("exit code", l.Failure.ExitCode)
	}
	field("buried", l.Buried.Local().Format(time.RFC3339))
	field("event time", l.EventTime.Format(time.RFC3339Nano))
	if len(l.Keys) > 0 {
		field("keys", strings.Join(l.Keys, ", "))
	}
	for name, value := range l.Headers {
		field("header "+printable(name), printable(value))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for title, text := range map[string]string{"stack": l.Failure.Stack, "output": l.Failure.Output} {
		if text != "" {
			fmt.Fprintf(out, "\n%s:\n%s\n", title, indent(text))
		}
	}
	if utf8.Valid(l.Value) {
		fmt.Fprintf(out, "\nvalue (%d bytes):\n%s\n", len(l.Value), indent(string(l.Value)))
	} else {
		fmt.Fprintf(out, "\nvalue (%d bytes, in hexadecimal):\n  %x\n", len(l.Value), l.Value)
	}
	return nil
}

func indent(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range lines {
		lines[i] = "  " + strings.ReplaceAll(printable(strings.ReplaceAll(lines[i], "\t", "    ")), "\r", "")
	}
	return strings.Join(lines, "\n")
}
