package pipelinecmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
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
	f := lettersFlags{}
	cmd := &cobra.Command{
		Use: "deadletters", Aliases: []string{"deadletter", "dlq"},
		Short: "List, show, replay and drop dead-lettered messages",
		Long: `A message that crashes its function repeatedly, is nacked too often or fails all retries is dead-lettered with diagnostics, and processing continues.
These commands work while "levada run" uses the data directory, and when nothing does. With the broker (--nats, --redis) they work from any machine that reaches it,
also while processes of "levada vertex" run.`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.dataDir, "data", "", "data directory of levada run (this or a broker is required)")
	f.broker.register(flags, "URL of the broker, if it is not in the data directory")
	commandline.Output(flags, &f.output, "text", "json")
	cmd.AddCommand(f.listCommand(), f.showCommand(),
		f.eachCommand("replay PIPELINE/NAME...", "Send dead letters to their vertex again, as new messages, and remove them here", "replayed", standalone.DeadLetters.Replay),
		f.eachCommand("drop PIPELINE/NAME...", "Delete dead letters", "dropped", standalone.DeadLetters.Drop))
	return cmd
}

// lettersFlags are those that all commands of dead letters have.
type lettersFlags struct {
	dataDir, output string
	broker          brokerFlags
}

// with opens the dead letters.
func (f *lettersFlags) with(cmd *cobra.Command, do func(context.Context, standalone.DeadLetters) error) error {
	if f.dataDir == "" && !f.broker.given() {
		return commandline.Usagef("name the data directory with --data, which levada run prints when it starts, or the broker with --nats or --redis")
	}
	at, err := f.broker.broker(cmd.Flags())
	if err != nil {
		return err
	}
	d, err := standalone.OpenDeadLetters(cmd.Context(), f.dataDir, at)
	if err != nil {
		return err
	}
	defer d.Close()
	return do(cmd.Context(), d)
}

func (f *lettersFlags) listCommand() *cobra.Command {
	var query standalone.LetterQuery
	cmd := &cobra.Command{
		Use: "list", Short: "List dead letters, oldest first", Args: cobra.NoArgs,
		Long: `List dead letters, oldest first, --limit of them. If there are more, the last line names the --after of the next page.

With -o json each letter is a line, and the line about the next page goes to standard error.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.with(cmd, func(ctx context.Context, d standalone.DeadLetters) error { return f.list(ctx, cmd, d, query) })
		},
	}
	cmd.Flags().StringVar(&query.Pipeline, "pipeline", "", "only of this pipeline: NAME or NAMESPACE/NAME")
	cmd.Flags().StringVar(&query.Vertex, "vertex", "", "only of this vertex")
	cmd.Flags().StringVar(&query.After, "after", "", "begin behind this place, as the page before printed it")
	cmd.Flags().IntVar(&query.Limit, "limit", 100, "letters to list; 0: all")
	return cmd
}

func (f *lettersFlags) list(ctx context.Context, cmd *cobra.Command, d standalone.DeadLetters, query standalone.LetterQuery) error {
	next, n, err := eachPage(ctx, d, query, func(letters []deadletter.Letter, first bool) error {
		if f.output == "json" {
			return encodeLetters(cmd.OutOrStdout(), letters)
		}
		return listLetters(cmd.OutOrStdout(), letters, first)
	})
	if err != nil {
		return err
	}
	switch {
	case next != "" && f.output == "json":
		fmt.Fprintf(cmd.ErrOrStderr(), "there are more: --after %s\n", next)
	case next != "":
		fmt.Fprintf(cmd.OutOrStdout(), "there are more: --after %s\n", next)
	case n == 0 && f.output == "text":
		fmt.Fprintln(cmd.OutOrStdout(), "no dead letters")
	}
	return nil
}

func (f *lettersFlags) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show PIPELINE/NAME", Short: "Show one dead letter with its payload and diagnostics", Args: oneLetter,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd, func(ctx context.Context, d standalone.DeadLetters) error {
				pipeline, name, err := letterName(args[0])
				if err != nil {
					return err
				}
				l, err := d.Get(ctx, pipeline, name)
				if err != nil {
					return err
				}
				if f.output == "json" {
					e := json.NewEncoder(cmd.OutOrStdout())
					e.SetIndent("", "  ")
					return e.Encode(l)
				}
				return showLetter(cmd.OutOrStdout(), l)
			})
		},
	}
}

// letterAction is what a command does with one letter.
type letterAction func(d standalone.DeadLetters, ctx context.Context, pipeline, name string) error

// eachCommand is a command that acts on the named letters, or on all. done is the word before the name of each letter that succeeded.
func (f *lettersFlags) eachCommand(use, short, done string, act letterAction) *cobra.Command {
	var all bool
	var query standalone.LetterQuery
	cmd := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return commandline.Usagef("%s needs the names of letters (PIPELINE/NAME), or --all", cmd.Name())
			}
			return f.with(cmd, func(ctx context.Context, d standalone.DeadLetters) error {
				if all {
					var err error
					if args, err = letterNames(ctx, d, query); err != nil {
						return err
					}
				}
				return actOnLetters(ctx, cmd.OutOrStdout(), d, args, done, act)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all of them")
	cmd.Flags().StringVar(&query.Pipeline, "pipeline", "", "with --all: only of this pipeline")
	cmd.Flags().StringVar(&query.Vertex, "vertex", "", "with --all: only of this vertex")
	return cmd
}

// letterNames returns the names of all letters of a query. They are complete before the first letter is changed, since a change moves the pages.
func letterNames(ctx context.Context, d standalone.DeadLetters, query standalone.LetterQuery) (names []string, err error) {
	_, _, err = eachPage(ctx, d, query, func(letters []deadletter.Letter, _ bool) error {
		for i := range letters {
			names = append(names, letterPlace(&letters[i]))
		}
		return nil
	})
	return names, err
}

// actOnLetters stops at the first letter that fails. Each one before it is printed, so that the user knows where to go on.
func actOnLetters(ctx context.Context, out io.Writer, d standalone.DeadLetters, names []string, done string, act letterAction) error {
	for _, n := range names {
		pipeline, name, err := letterName(n)
		if err != nil {
			return err
		}
		if err := act(d, ctx, pipeline, name); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		fmt.Fprintln(out, done, commandline.Printable(n))
	}
	return nil
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
	if err := showLetterFields(out, l); err != nil {
		return err
	}
	for _, section := range [][2]string{{"stack", l.Failure.Stack}, {"output", l.Failure.Output}} {
		if section[1] != "" {
			fmt.Fprintf(out, "\n%s:\n%s\n", section[0], commandline.Indent(section[1]))
		}
	}
	if utf8.Valid(l.Value) {
		fmt.Fprintf(out, "\nvalue (%d bytes):\n%s\n", len(l.Value), commandline.Indent(string(l.Value)))
	} else {
		fmt.Fprintf(out, "\nvalue (%d bytes, in hexadecimal):\n  %x\n", len(l.Value), l.Value)
	}
	return nil
}

func showLetterFields(out io.Writer, l *standalone.LetterView) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	field := func(name string, value any) {
		fmt.Fprintf(w, "%s:\t%s\n", name, commandline.Printable(fmt.Sprint(value)))
	}
	field("name", letterPlace(&l.Letter))
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
	field("dead-lettered", l.Buried.Local().Format(time.RFC3339))
	field("event time", l.EventTime.Format(time.RFC3339Nano))
	if len(l.Keys) > 0 {
		field("keys", strings.Join(l.Keys, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(l.Headers)) {
		field("header "+commandline.Printable(name), l.Headers[name])
	}
	return w.Flush()
}
