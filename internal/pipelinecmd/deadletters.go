package pipelinecmd

import (
	"context"
	"encoding/json"
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
		Short: "List, show, replay and drop dead-lettered messages",
		Long: `A message that crashes its function repeatedly, is nacked too often or fails all retries is dead-lettered with diagnostics, and processing continues.
These commands work while "levada run" uses the data directory, and when nothing does.`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&dataDir, "data", "", "data directory of levada run (required)")
	broker.register(flags, "URL of the broker, if it is not in the data directory")
	commandline.Output(flags, &output, "text", "json")

	open := func(cmd *cobra.Command) (standalone.DeadLetters, error) {
		if dataDir == "" {
			return nil, commandline.Usagef("name the data directory with --data: levada run prints it when it starts")
		}
		options, err := broker.options(cmd.Flags())
		if err != nil {
			return nil, err
		}
		return standalone.OpenDeadLetters(cmd.Context(), dataDir, broker.url, options...)
	}

	var query standalone.LetterQuery
	list := &cobra.Command{
		Use: "list", Short: "List dead letters, oldest first", Args: cobra.NoArgs,
		Long: `List dead letters, oldest first, --limit of them. If there are more, the last line names the --after of the next page.

With -o json each letter is a line, and the line about the next page goes to standard error.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := open(cmd)
			if err != nil {
				return err
			}
			defer d.Close()
			next, n, err := eachPage(cmd.Context(), d, query, func(letters []deadletter.Letter, first bool) error {
				if output == "json" {
					return encodeLetters(cmd.OutOrStdout(), letters)
				}
				return listLetters(cmd.OutOrStdout(), letters, first)
			})
			if err != nil {
				return err
			}
			switch {
			case next != "" && output == "json":
				fmt.Fprintf(cmd.ErrOrStderr(), "there are more: --after %s\n", next)
			case next != "":
				fmt.Fprintf(cmd.OutOrStdout(), "there are more: --after %s\n", next)
			case n == 0 && output == "text":
				fmt.Fprintln(cmd.OutOrStdout(), "no dead letters")
			}
			return nil
		},
	}
	list.Flags().StringVar(&query.Pipeline, "pipeline", "", "only of this pipeline: NAME or NAMESPACE/NAME")
	list.Flags().StringVar(&query.Vertex, "vertex", "", "only of this vertex")
	list.Flags().StringVar(&query.After, "after", "", "begin behind this place, as the page before printed it")
	list.Flags().IntVar(&query.Limit, "limit", 100, "letters to list; 0: all")

	show := &cobra.Command{
		Use: "show PIPELINE/NAME", Short: "Show one dead letter with its payload and diagnostics", Args: oneLetter,
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
					return commandline.Usagef("%s needs the names of letters (PIPELINE/NAME), or --all", cmd.Name())
				}
				d, err := open(cmd)
				if err != nil {
					return err
				}
				defer d.Close()
				if all {
					_, _, err := eachPage(cmd.Context(), d, standalone.LetterQuery{Pipeline: ofPipeline, Vertex: ofVertex}, func(letters []deadletter.Letter, _ bool) error {
						for i := range letters {
							args = append(args, letterPlace(&letters[i]))
						}
						return nil
					})
					if err != nil {
						return err
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
					fmt.Fprintln(cmd.OutOrStdout(), done, commandline.Printable(a))
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
		act("replay PIPELINE/NAME...", "Send dead letters to their vertex again, as new messages, and remove them here", "replayed", func(d standalone.DeadLetters, cmd *cobra.Command, p, n string) error {
			return d.Replay(cmd.Context(), p, n)
		}),
		act("drop PIPELINE/NAME...", "Delete dead letters", "dropped", func(d standalone.DeadLetters, cmd *cobra.Command, p, n string) error {
			return d.Drop(cmd.Context(), p, n)
		}))
	return cmd
}

func oneLetter(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return commandline.Usagef("name one dead letter as PIPELINE/NAME; levada deadletters list shows them")
	}
	return nil
}

func letterName(arg string) (pipeline, name string, err error) {
	pipeline, name, ok := cutLast(arg, "/")
	if !ok || pipeline == "" || name == "" {
		return "", "", commandline.Usagef("%q is not the name of a dead letter: expected PIPELINE/NAME as levada deadletters list shows them", arg)
	}
	return pipeline, name, nil
}

// eachPage gives pages of letters to show as they come, up to the query's limit, 0 for all. It returns where the next page begins, and how many came.
func eachPage(ctx context.Context, d standalone.DeadLetters, q standalone.LetterQuery, show func(letters []deadletter.Letter, first bool) error) (next string, n int, err error) {
	const most = 500
	limit := q.Limit
	for first := true; ; first = false {
		q.Limit = most
		if limit > 0 {
			q.Limit = min(most, limit-n)
		}
		page, err := d.Page(ctx, q)
		if err != nil {
			return "", n, err
		}
		if len(page.Letters) > 0 {
			if err := show(page.Letters, first); err != nil {
				return "", n, err
			}
		}
		n += len(page.Letters)
		q.After = page.Next
		if page.Next == "" || limit > 0 && n >= limit {
			return page.Next, n, nil
		}
	}
}

// letterPlace is how the other commands name a letter.
func letterPlace(l *deadletter.Letter) string { return l.Pipeline + "/" + l.Name }

func encodeLetters(out io.Writer, letters []deadletter.Letter) error {
	e := json.NewEncoder(out)
	for i := range letters {
		if err := e.Encode(&letters[i]); err != nil {
			return err
		}
	}
	return nil
}

func listLetters(out io.Writer, letters []deadletter.Letter, header bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if header {
		fmt.Fprintln(w, "NAME\tREASON\tATTEMPTS\tDEAD-LETTERED\tMESSAGE\tERROR")
	}
	for i := range letters {
		l := &letters[i]
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", commandline.Printable(letterPlace(l)), commandline.Printable(string(l.Failure.Reason)), l.Failure.Attempts, l.Buried.Local().Format(time.DateTime), commandline.Printable(l.ID), commandline.FirstLine(l.Failure.Error))
	}
	return w.Flush()
}

func showLetter(out io.Writer, l *standalone.LetterView) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	field := func(name string, value any) {
		fmt.Fprintf(w, "%s:\t%s\n", name, commandline.Printable(fmt.Sprint(value)))
	}
	field("name", l.Pipeline+"/"+l.Name)
	field("message", l.ID)
	field("reason", l.Failure.Reason)
	field("error", l.Failure.Error)
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
		field("header "+commandline.Printable(name), value)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for title, text := range map[string]string{"stack": l.Failure.Stack, "output": l.Failure.Output} {
		if text != "" {
			fmt.Fprintf(out, "\n%s:\n%s\n", title, commandline.Indent(text))
		}
	}
	if utf8.Valid(l.Value) {
		fmt.Fprintf(out, "\nvalue (%d bytes):\n%s\n", len(l.Value), commandline.Indent(string(l.Value)))
	} else {
		fmt.Fprintf(out, "\nvalue (%d bytes, in hexadecimal):\n  %x\n", len(l.Value), l.Value)
	}
	return nil
}
