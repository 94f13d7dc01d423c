package streamcmd

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
)

type submitFlags struct {
	store            connect.StoreFlags
	notifier         connect.NotifierFlags
	out              outputFlag
	job              stream.Job
	query, queryFile string
	onBad, notBefore string
	wait             bool
}

func newSubmitCommand() *cobra.Command {
	var f submitFlags
	cmd := &cobra.Command{
		Use: "submit STREAM", Short: "Submit a job that reads a stream to its end, once",
		Long: `Submit a job and print its id. With --dedupe-key or --id, submitting the same job again returns the one that is there. A job with this key or
id that moves other records, since its stream, target or query is another, is an error.`,
		Example: `  levada stream submit users --target dns:///shop:50051 --dedupe-key users/2026-11-21 --wait
  levada stream submit orders --query '{"since":"2026-11-01"}' --on-bad halt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return commandline.Usagef("submit needs the name of one stream, for instance: levada stream submit users --target 127.0.0.1:50051")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) { return f.run(cmd, args[0]) },
	}
	f.register(cmd.Flags())
	return cmd
}

func (f *submitFlags) register(flags *pflag.FlagSet) {
	f.store.Register(flags)
	f.notifier.Register(flags)
	f.out.register(flags)
	flags.StringVar(&f.job.Target, "target", "", "where the producer is, for instance dns:///orders:50051; empty: the worker knows")
	flags.StringVar(&f.job.ID, "id", "", "the job's id; empty: a random one. A job with this id that has another stream, target, query or key is an error")
	flags.StringVar(&f.query, "query", "", "parameters of the stream, for its source")
	flags.StringVar(&f.queryFile, "query-file", "", "file with the parameters; - is standard input")
	flags.StringVar(&f.job.DedupeKey, "dedupe-key", "", "if the stream has a job with this key, return it instead of making another; an error if its target or query is another")
	flags.IntVar(&f.job.Priority, "priority", 0, "jobs with a greater one are claimed first")
	commandline.AnyNumber(flags, "priority")
	flags.StringVar(&f.onBad, "on-bad", string(stream.Quarantine), "what becomes of a record that cannot be processed: quarantine (store it and continue) or halt (fail the job)")
	commandline.OneOf(flags, "on-bad", string(stream.Quarantine), string(stream.HaltJob))
	flags.IntVar(&f.job.MaxBad, "max-bad", 0, "how many records may go into quarantine before the job fails; 0: the worker's default, -1: none")
	commandline.AnyNumber(flags, "max-bad")
	flags.StringVar(&f.notBefore, "not-before", "", "start no earlier: a time as 2026-11-21T18:00:00Z, or from now on, as 10m")
	flags.BoolVar(&f.wait, "wait", false, "show the progress, and end when the job has: with 0 if it is complete")
}

// check makes the job of the flags.
func (f *submitFlags) check(cmd *cobra.Command) (err error) {
	f.job.OnBad = stream.OnBad(f.onBad)
	if f.query != "" && f.queryFile != "" {
		return commandline.Usagef("--query and --query-file exclude each other")
	}
	f.job.Query = []byte(f.query)
	if f.queryFile != "" {
		if f.job.Query, err = readAll(cmd, f.queryFile); err != nil {
			return commandline.Usagef("--query-file: %w", err)
		}
	}
	if f.job.MaxBad < 0 && f.job.MaxBad != stream.None {
		return commandline.Usagef("--max-bad is %d, but must not be negative; -1 allows none, 0 is the worker's default", f.job.MaxBad)
	}
	if f.job.NotBefore, err = parseTime(f.notBefore, time.Now()); err != nil {
		return commandline.Usagef("--not-before: %w", err)
	}
	return nil
}

func (f *submitFlags) run(cmd *cobra.Command, streamName string) (err error) {
	f.job.Stream = streamName
	if err := f.check(cmd); err != nil {
		return err
	}
	d, err := f.store.Open(cmd.Context(), true)
	if err != nil {
		return err
	}
	defer d.Closing(&err)
	if err := f.notifier.Check(d); err != nil {
		return err
	}
	status, err := d.Submit(cmd.Context(), f.job)
	if err != nil {
		return err
	}
	if err := f.notifier.Send(cmd.Context(), d, cmd.ErrOrStderr(), status.Job); err != nil {
		return err
	}
	if status.Existed {
		fmt.Fprintf(cmd.ErrOrStderr(), "the job is there already, and is %s%s\n", status.State, keptPolicy(f.job, status.Job))
	}
	if !f.out.json() {
		fmt.Fprintln(cmd.OutOrStdout(), status.ID)
	}
	if f.wait {
		return f.await(cmd, d, status.ID)
	}
	if f.out.json() {
		return commandline.WriteJSON(cmd.OutOrStdout(), true, status)
	}
	return nil
}

// await waits for the end of the job, which is an error unless the job is complete.
func (f *submitFlags) await(cmd *cobra.Command, d *connect.Database, id string) error {
	status, err := waitForJob(cmd.Context(), d, id, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if f.out.json() {
		if err := commandline.WriteJSON(cmd.OutOrStdout(), true, status); err != nil {
			return err
		}
	}
	if status.State != stream.Completed {
		return fmt.Errorf("job %s is %s: %s", status.ID, status.State, whatNext(&status))
	}
	return nil
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
func waitForJob(ctx context.Context, d *connect.Database, id string, out io.Writer) (stream.Status, error) {
	s, live := &commandline.Screen{Out: out}, commandline.IsTerminal(out)
	var m jobtext.Meter
	said, saidAt := "", time.Time{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := d.Get(ctx, id)
		switch {
		case ctx.Err() != nil:
			return status, fmt.Errorf("not waiting any more; job %s goes on: see it with `levada stream show %s`", id, jobtext.ShortID(id))
		case err != nil:
			return status, err
		}
		line := progressText(&status, m.Update(time.Now(), status.Progress.Records))
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
	fmt.Fprintf(&b, "%s %s %s: %s records", jobtext.ShortID(s.ID), commandline.Printable(s.Stream), s.State, humanize.Comma(int64(s.Progress.Records)))
	if s.Progress.Size > 0 {
		fmt.Fprintf(&b, " of %s (%s)", humanize.Comma(int64(s.Progress.Size)), jobtext.Percent(s.Progress))
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
