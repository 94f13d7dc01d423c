package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
)

func newSubmitCommand() *cobra.Command {
	var (
		store            storeFlag
		notifier         notifierFlag
		out              outputFlag
		job              stream.Job
		query, queryFile string
		onBad, notBefore string
		wait             bool
	)
	cmd := &cobra.Command{
		Use: "submit STREAM", Short: "Submit a job that reads a stream to its end, once",
		Long: `Submit a job and print its id. With --dedupe-key or --id, submitting the same job again returns the one that is there. A job with this key or
id that moves other records, since its stream, target or query is another, is an error.`,
		Example: `  levada stream submit users --target dns:///shop:50051 --dedupe-key users/2026-11-21 --wait
  levada stream submit orders --query '{"since":"2026-11-01"}' --on-bad halt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return commandline.ExitError{Code: commandline.ExitUsage, Err: errors.New("submit needs the name of one stream, for instance: levada stream submit users --target 127.0.0.1:50051")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			job.Stream = args[0]
			switch job.OnBad = stream.OnBad(onBad); job.OnBad {
			case stream.Quarantine, stream.HaltJob:
			default:
				return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("--on-bad is quarantine or halt, not %q", onBad)}
			}
			if query != "" && queryFile != "" {
				return commandline.ExitError{Code: commandline.ExitUsage, Err: errors.New("--query and --query-file exclude each other")}
			}
			job.Query = []byte(query)
			if queryFile != "" {
				if job.Query, err = readAll(cmd, queryFile); err != nil {
					return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("--query-file: %w", err)}
				}
			}
			if job.MaxBad < 0 && job.MaxBad != stream.None {
				return commandline.UsageError(fmt.Errorf("--max-bad is %d, but must not be negative; -1 allows none, 0 is the worker's default", job.MaxBad))
			}
			if job.NotBefore, err = parseTime(notBefore, time.Now()); err != nil {
				return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("--not-before: %w", err)}
			}
			d, err := store.open(cmd.Context(), true)
			if err != nil {
				return err
			}
			defer d.closing(&err)
			if err := notifier.check(d); err != nil {
				return err
			}
			status, err := d.Submit(cmd.Context(), job)
			if err != nil {
				return err
			}
			if err := notifier.send(cmd.Context(), d, cmd.ErrOrStderr(), status.Job); err != nil {
				return err
			}
			if status.Existed {
				fmt.Fprintf(cmd.ErrOrStderr(), "the job is there already, and is %s%s\n", status.State, keptPolicy(job, status.Job))
			}
			if !wait {
				if out.json() {
					return encode(cmd.OutOrStdout(), true, status)
				}
				fmt.Fprintln(cmd.OutOrStdout(), status.ID)
				return nil
			}
			if !out.json() {
				fmt.Fprintln(cmd.OutOrStdout(), status.ID)
			}
			status, err = waitForJob(cmd.Context(), d, status.ID, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if out.json() {
				if err := encode(cmd.OutOrStdout(), true, status); err != nil {
					return err
				}
			}
			if status.State != stream.Completed {
				return commandline.ExitError{Code: commandline.ExitProblems, Err: fmt.Errorf("job %s is %s: %s", status.ID, status.State, whatNext(&status))}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	store.register(flags)
	notifier.register(flags)
	out.register(flags)
	flags.StringVar(&job.Target, "target", "", "where the producer is, for instance dns:///orders:50051; empty: the worker knows")
	flags.StringVar(&job.ID, "id", "", "the job's id; empty: a random one. A job with this id that has another stream, target, query or key is an error")
	flags.StringVar(&query, "query", "", "parameters of the stream, for its source")
	flags.StringVar(&queryFile, "query-file", "", "file with the parameters; - is standard input")
	flags.StringVar(&job.DedupeKey, "dedupe-key", "", "if the stream has a job with this key, return it instead of making another; an error if its target or query is another")
	flags.IntVar(&job.Priority, "priority", 0, "jobs with a greater one are claimed first")
	commandline.AnyNumber(flags, "priority")
	flags.StringVar(&onBad, "on-bad", string(stream.Quarantine), "what becomes of a record that cannot be processed: quarantine (store it and continue) or halt (fail the job)")
	flags.IntVar(&job.MaxBad, "max-bad", 0, "how many records may go into quarantine before the job fails; 0: the worker's default, -1: none")
	commandline.AnyNumber(flags, "max-bad")
	flags.StringVar(&notBefore, "not-before", "", "start no earlier: a time as 2026-11-21T18:00:00Z, or from now on, as 10m")
	flags.BoolVar(&wait, "wait", false, "show the progress, and end when the job has: with 0 if it is complete")
	return cmd
}

// keptPolicy says in what a job that was there already differs from the one that was submitted, if in anything.
func keptPolicy(asked, found stream.Job) string {
	text := ""
	for _, p := range []struct {
		flag        string
		asked, kept any
	}{{"--on-bad", asked.OnBad, found.OnBad}, {"--max-bad", asked.MaxBad, found.MaxBad}, {"--priority", asked.Priority, found.Priority}} {
		if p.asked != p.kept {
			text += fmt.Sprintf("; it keeps %s %v", p.flag, p.kept)
		}
	}
	return text
}

func readAll(cmd *cobra.Command, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(file)
}

// parseTime takes a time or a duration from now on.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(d), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("expected a time such as %s, or a duration from now on such as 10m, not %q", now.UTC().Format(time.RFC3339), text)
}

// waitForJob shows a job's progress until it is final or paused.
func waitForJob(ctx context.Context, d *database, id string, out io.Writer) (stream.Status, error) {
	s, live := &commandline.Screen{Out: out}, commandline.IsTerminal(out)
	var m meter
	said, saidAt := "", time.Time{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := d.Get(ctx, id)
		if ctx.Err() != nil {
			return status, commandline.ExitError{Code: commandline.ExitProblems, Err: fmt.Errorf("not waiting any more; job %s goes on: see it with `levada stream show %s`", id, shortID(id))}
		}
		if err != nil {
			return status, err
		}
		rate := m.update(time.Now(), status.Progress.Records)
		line := progressText(&status, rate)
		switch {
		case live:
			s.Draw(line + "\n")
		case line != said && time.Since(saidAt) > 2*time.Second || status.State.Final():
			fmt.Fprintln(out, line)
			said, saidAt = line, time.Now()
		}
		if status.State.Final() {
			return status, nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// progressText is one line about a job: records, rate, percent when known, attempts, owner.
func progressText(s *stream.Status, rate float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s: %s records", shortID(s.ID), commandline.Printable(s.Stream), s.State, humanize.Comma(int64(s.Progress.Records)))
	if s.Progress.Size > 0 {
		fmt.Fprintf(&b, " of %s (%s)", humanize.Comma(int64(s.Progress.Size)), percent(s.Progress))
	}
	if s.State == stream.Running {
		fmt.Fprintf(&b, ", %s/s", humanize.Comma(int64(rate)))
	}
	if s.Progress.Bad > 0 {
		fmt.Fprintf(&b, ", %d in quarantine", s.Progress.Bad)
	}
	fmt.Fprintf(&b, ", attempt %d", s.Attempts)
	if s.State == stream.Running {
		fmt.Fprintf(&b, ", %s", commandline.Printable(s.Owner.String()))
	}
	if s.LastError != "" {
		fmt.Fprintf(&b, ": %s", commandline.FirstLine(s.LastError))
	}
	return b.String()
}
