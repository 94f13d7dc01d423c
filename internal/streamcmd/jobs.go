package streamcmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
)

func newSubmitCommand() *cobra.Command {
	var (
		store            storeFlag
		hints            hintFlag
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
			if err := hints.check(d); err != nil {
				return err
			}
			status, err := d.Submit(cmd.Context(), job)
			if err != nil {
				return err
			}
			if err := hints.send(cmd.Context(), d, cmd.ErrOrStderr(), status.Job); err != nil {
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
	hints.register(flags)
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

func newListCommand() *cobra.Command {
	var (
		store    storeFlag
		out      outputFlag
		filter   stream.Filter
		states   []string
		watch    bool
		interval time.Duration
	)
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List jobs, the newest first", Args: cobra.NoArgs,
		Example: `  levada stream list --state running,failed
  levada stream list --watch`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for _, s := range states {
				known := []stream.State{stream.Ready, stream.Running, stream.Paused, stream.Completed, stream.Failed, stream.Cancelled}
				if !slices.Contains(known, stream.State(s)) {
					return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("--state: expected some of %s, not %q", joinStates(known), s)}
				}
				filter.States = append(filter.States, stream.State(s))
			}
			d, err := store.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer d.closing(&err)
			if watch {
				return watchJobs(cmd, d, filter, &out, interval)
			}
			jobs, err := d.List(cmd.Context(), filter)
			if err != nil {
				return err
			}
			if out.json() {
				for i := range jobs {
					if err := encode(cmd.OutOrStdout(), false, &jobs[i]); err != nil {
						return err
					}
				}
				return nil
			}
			_, err = io.WriteString(cmd.OutOrStdout(), jobTable(jobs, time.Now(), averageRate))
			return err
		},
	}
	flags := cmd.Flags()
	store.register(flags)
	out.register(flags)
	flags.StringSliceVar(&states, "state", nil, "only jobs in these states: ready, running, paused, completed, failed, cancelled")
	flags.StringSliceVar(&filter.Streams, "stream", nil, "only jobs of these streams")
	flags.IntVar(&filter.Limit, "limit", 100, "how many at most")
	flags.BoolVarP(&watch, "watch", "w", false, "show them again and again, until Ctrl-C")
	flags.DurationVar(&interval, "interval", time.Second, "time between two looks, with --watch")
	commandline.AtLeast(flags, "interval", 100*time.Millisecond)
	return cmd
}

func joinStates(states []stream.State) string {
	texts := make([]string, len(states))
	for i, s := range states {
		texts[i] = string(s)
	}
	return strings.Join(texts, ", ")
}

// averageRate is the rate since the job was first claimed.
func averageRate(s *stream.Status, now time.Time) float64 {
	end := now
	if !s.FinishedAt.IsZero() {
		end = s.FinishedAt
	}
	if s.StartedAt.IsZero() || !end.After(s.StartedAt) {
		return 0
	}
	return float64(s.Progress.Records) / end.Sub(s.StartedAt).Seconds()
}

func jobTable(jobs []stream.Status, now time.Time, rate func(*stream.Status, time.Time) float64) string {
	if len(jobs) == 0 {
		return "no jobs\n"
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTREAM\tSTATE\tRECORDS\t%\tRECORDS/S\tBAD\tATTEMPTS\tOWNER\tAGE\tREASON\tERROR")
	for i := range jobs {
		s := &jobs[i]
		owner := "-"
		if s.State == stream.Running {
			owner = commandline.Printable(s.Owner.String())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", commandline.Printable(s.ID), commandline.Printable(s.Stream), s.State, humanize.Comma(int64(s.Progress.Records)), percent(s.Progress),
			humanize.Comma(int64(rate(s, now))), s.Progress.Bad, s.Attempts, owner, age(now.Sub(s.CreatedAt)), cmp.Or(string(s.Reason), "-"), shorten(s.LastError, 60))
	}
	_ = w.Flush()
	return b.String()
}

func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func watchJobs(cmd *cobra.Command, d *database, filter stream.Filter, out *outputFlag, interval time.Duration) error {
	s := &commandline.Screen{Out: cmd.OutOrStdout()}
	live := commandline.IsTerminal(cmd.OutOrStdout())
	meters := map[string]*meter{}
	tick := time.NewTicker(max(interval, 100*time.Millisecond))
	defer tick.Stop()
	for {
		jobs, err := d.List(cmd.Context(), filter)
		if cmd.Context().Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		now := time.Now()
		switch {
		case out.json():
			for i := range jobs {
				if err := encode(cmd.OutOrStdout(), false, &jobs[i]); err != nil {
					return err
				}
			}
		default:
			table := jobTable(jobs, now, func(job *stream.Status, now time.Time) float64 {
				if job.State != stream.Running {
					return averageRate(job, now)
				}
				if meters[job.ID] == nil {
					meters[job.ID] = &meter{}
				}
				return meters[job.ID].update(now, job.Progress.Records)
			})
			if live {
				s.Draw(table)
			} else {
				fmt.Fprintf(s.Out, "%s\n%s", now.Format(time.TimeOnly), table)
			}
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}

// jobView is what `show -o json` prints.
type jobView struct {
	stream.Status
	Checkpoint *checkpointView                `json:"checkpoint,omitempty"`
	Quarantine map[stream.QuarantineState]int `json:"quarantine"`
	// Unread is why checkpoint and quarantine are not known, though the job is: the sink's tables could not be read.
	Unread string `json:"unread,omitempty"`
	Next   string `json:"next"`
}

type checkpointView struct {
	Records uint64 `json:"records"`
	Digest  string `json:"digest"`
	Done    bool   `json:"done"`
}

func newShowCommand() *cobra.Command {
	var store storeFlag
	var out outputFlag
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show a job with all that is known of it, and what to do next", Args: jobArguments(1), Annotations: map[string]string{"one": "job"},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			d, err := store.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer d.closing(&err)
			status, err := findJob(cmd.Context(), d, args[0])
			if err != nil {
				return err
			}
			v := jobView{Status: status, Quarantine: map[stream.QuarantineState]int{}, Next: whatNext(&status)}
			if err := v.readSink(cmd.Context(), d); err != nil {
				if cmd.Context().Err() != nil {
					return err
				}
				v.Unread = err.Error()
			}
			if out.json() {
				return encode(cmd.OutOrStdout(), true, v)
			}
			return showJob(cmd.OutOrStdout(), &v, time.Now())
		},
	}
	store.register(cmd.Flags())
	out.register(cmd.Flags())
	return cmd
}

// readSink adds what the sink knows of the job.
func (v *jobView) readSink(ctx context.Context, d *database) error {
	rows, err := d.offsets().Quarantined(ctx, v.ID, 100000)
	if err != nil {
		return err
	}
	for i := range rows {
		v.Quarantine[rows[i].State]++
	}
	if v.State == stream.Completed {
		v.Next = completedNext(shortID(v.ID), v.Quarantine[stream.Waiting])
	}
	if v.Epoch == 0 {
		return nil
	}
	checkpoint, err := readCheckpoint(ctx, d, v.ID)
	if err == nil {
		v.Checkpoint = &checkpointView{checkpoint.Seq, checkpoint.Digest.String(), checkpoint.Done}
	}
	if errors.Is(err, stream.ErrFenced) {
		return nil
	}
	return err
}

// readCheckpoint asks the sink of the store's database how far a job has come. It uses the job's current epoch, which changes nothing.
func readCheckpoint(ctx context.Context, d *database, job string) (stream.Checkpoint, error) {
	for tries := 1; ; tries++ {
		status, err := d.Get(ctx, job)
		if err != nil || status.Epoch == 0 {
			return stream.Checkpoint{}, err
		}
		checkpoint, err := d.offsets().Fence(ctx, status.Lease())
		if !errors.Is(err, stream.ErrFenced) || tries == 10 {
			return checkpoint, err
		}
	}
}

func showJob(out io.Writer, v *jobView, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	field := func(name string, format string, args ...any) {
		fmt.Fprintf(w, "%s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	moment := func(name string, t time.Time) {
		if !t.IsZero() {
			field(name, "%s", t.Local().Format(time.RFC3339))
		}
	}
	s := &v.Status
	field("job", "%s", commandline.Printable(s.ID))
	field("stream", "%s", commandline.Printable(s.Stream))
	field("state", "%s", s.State)
	field("records", "%s", humanize.Comma(int64(s.Progress.Records)))
	if s.Progress.Size > 0 {
		field("size", "%s records (%s)", humanize.Comma(int64(s.Progress.Size)), percent(s.Progress))
	}
	field("bytes", "%s", humanize.IBytes(s.Progress.Bytes))
	if rate := averageRate(s, now); rate > 0 {
		field("rate", "%s records/s on average", humanize.Comma(int64(rate)))
	}
	if v.Checkpoint != nil {
		field("checkpoint", "after record %s, digest %s%s", humanize.Comma(int64(v.Checkpoint.Records)), v.Checkpoint.Digest, map[bool]string{true: ", complete"}[v.Checkpoint.Done])
	}
	if len(v.Quarantine) > 0 {
		var parts []string
		for _, state := range []stream.QuarantineState{stream.Waiting, stream.Replay, stream.Replayed, stream.Dropped} {
			if n := v.Quarantine[state]; n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n, state))
			}
		}
		field("quarantine", "%s", strings.Join(parts, ", "))
	}
	if v.Unread != "" {
		field("checkpoint, quarantine", "not known: %s", commandline.Printable(v.Unread))
	}
	if s.Target != "" {
		field("target", "%s", commandline.Printable(s.Target))
	}
	if len(s.Query) > 0 {
		field("query", "%s", commandline.FirstLine(payloadText(s.Query)))
	}
	if s.DedupeKey != "" {
		field("dedupe key", "%s", commandline.Printable(s.DedupeKey))
	}
	field("on bad", "%s, at most %s", s.OnBad, limitText(s.MaxBad))
	if s.Priority != 0 {
		field("priority", "%d", s.Priority)
	}
	if s.Stall.Failures > 0 {
		field("attempts", "%d claims; the last %d attempts failed%s", s.Attempts, s.Stall.Failures, stallText(s))
	} else {
		field("attempts", "%d claims", s.Attempts)
	}
	field("epoch", "%d", s.Epoch)
	if s.Owner != (stream.Owner{}) {
		field(map[bool]string{true: "owner", false: "last owner"}[s.State == stream.Running], "%s", commandline.Printable(s.Owner.String()))
	}
	if s.State == stream.Running {
		field("lease", "until %s", s.LeaseUntil.Local().Format(time.RFC3339))
	}
	if j := s.Journal; j != (stream.Journal{}) {
		text := fmt.Sprintf("something up to record %s is suspected of having killed its process; %d records are handed over at once", humanize.Comma(int64(j.Until)), j.Probe)
		if j.Hand > 0 {
			text += fmt.Sprintf("; record %s is in flight", humanize.Comma(int64(j.Hand)))
		}
		if j.Deaths > 0 {
			text += fmt.Sprintf("; %d processes died with it alone", j.Deaths)
		}
		field("journal", "%s", text)
	}
	moment("created", s.CreatedAt)
	if s.State == stream.Ready && s.NotBefore.After(now) {
		moment(map[bool]string{true: "next attempt", false: "not before"}[s.Stall.Failures > 0], s.NotBefore)
	}
	moment("started", s.StartedAt)
	moment("updated", s.UpdatedAt)
	moment("finished", s.FinishedAt)
	if s.Reason != "" {
		if meaning := reasonText[s.Reason]; meaning != "" {
			field("reason", "%s: %s", s.Reason, meaning)
		} else {
			field("reason", "%s", s.Reason)
		}
	}
	if s.LastError != "" {
		field("last error", "%s", commandline.Printable(s.LastError))
	}
	field("next", "%s", v.Next)
	return w.Flush()
}

// bytesText is how people read a key, or other bytes: text as it is, text with control characters, quotes or spaces at its ends quoted with escapes as
// in Go, and what is no UTF-8 in hexadecimal.
func bytesText(b []byte) string {
	switch text := string(b); {
	case !utf8.Valid(b):
		return fmt.Sprintf("%x (hexadecimal)", b)
	case text == "" || text != strings.TrimSpace(text) || strings.Contains(text, "\ufffd") || strconv.Quote(text) != `"`+text+`"`:
		return strconv.Quote(text)
	default:
		return text
	}
}

// payloadText is bytesText for what may have several lines, such as JSON.
func payloadText(b []byte) string {
	if text := string(b); utf8.Valid(b) && text == commandline.PrintableLines(text) {
		return text
	}
	return bytesText(b)
}

// completedNext says what to do about a completed job of which so many records wait in quarantine. Those that were replayed or dropped do not.
func completedNext(id string, waiting int) string {
	if waiting > 0 {
		return fmt.Sprintf("levada stream quarantine list %s: %d records wait in quarantine", id, waiting)
	}
	return "nothing: it is complete"
}

// whatNext says what a person can do about a job.
func whatNext(s *stream.Status) string {
	id := shortID(s.ID)
	switch s.State {
	case stream.Ready:
		if s.NotBefore.After(time.Now()) && s.Stall.Failures == 0 {
			return "nothing: a worker claims it once its time has come"
		}
		if s.Stall.Failures > 0 {
			return "nothing, if workers run: they try again; " + waitingText(s.Reason)
		}
		return fmt.Sprintf("nothing, if a worker for the stream runs (levada stream work --stream %s)", commandline.Printable(s.Stream))
	case stream.Running:
		if s.Stall.Failures > 0 {
			return "nothing: a worker tries it again; " + waitingText(s.Reason)
		}
		return "nothing: a worker has it"
	case stream.Paused:
		return "levada stream resume " + id
	case stream.Cancelled:
		return fmt.Sprintf("nothing; levada stream retry %s goes on after the last commit", id)
	case stream.Completed:
		return completedNext(id, int(s.Progress.Bad))
	}
	retry := fmt.Sprintf("then levada stream retry %s, which goes on after the last commit", id)
	switch s.Reason {
	case stream.ReasonUnknownStream:
		return "the producer has no such stream: correct its configuration or the job's target, " + retry
	case stream.ReasonUnauthenticated, stream.ReasonPermissionDenied:
		return "the producer denies this worker the stream: correct the credentials or the policy, " + retry
	case stream.ReasonUnimplemented:
		return "the target does not serve streams: correct the job's target, or route levada.stream.v1.Stream to the producer, " + retry
	case stream.ReasonQueryChanged, stream.ReasonGenerationChanged, stream.ReasonPositionGone, stream.ReasonBadToken:
		return "the producer cannot go on from where the job is: submit a new job, and empty its place first if it has stored records"
	case stream.ReasonTooManyBad:
		return fmt.Sprintf("look at levada stream quarantine list %s; fix the cause, %s", id, retry)
	case stream.ReasonHalted, stream.ReasonSourceHalted, stream.ReasonOutOfOrder:
		return "fix what the last error names, " + retry
	case stream.ReasonIncomplete:
		return fmt.Sprintf("the source changed while it was read: levada stream verify %s names the records that differ; submit a new job, with a snapshot if the source is a table", id)
	case stream.ReasonNoProgress:
		return "fix what the last error says, at producer or handler, " + retry
	}
	return "fix what the last error says, " + retry
}

// nothingToRetry is the error for a complete job without records that are marked for replay: it has nothing left to do.
func nothingToRetry(ctx context.Context, d *database, s stream.Status) error {
	if s.State != stream.Completed {
		return nil
	}
	marked, err := d.offsets().Quarantined(ctx, s.ID, 1, stream.Replay)
	if err != nil || len(marked) > 0 {
		return err
	}
	return fmt.Errorf("job %s is complete, nothing to retry: quarantined records are handed over again with `levada stream quarantine replay %s SEQ...`, and records that came since need a new job", s.ID, shortID(s.ID))
}

// newStreamChangeCommands makes pause, resume, cancel and retry.
func newChangeCommands() []*cobra.Command {
	change := func(name, short, done string, due bool, do func(*database, context.Context, string) (stream.Status, error)) *cobra.Command {
		var store storeFlag
		var hints hintFlag
		var out outputFlag
		cmd := &cobra.Command{
			Use: name + " ID...", Short: short, Args: jobArguments(1),
			RunE: func(cmd *cobra.Command, args []string) (err error) {
				d, err := store.open(cmd.Context(), false)
				if err != nil {
					return err
				}
				defer d.closing(&err)
				if err := hints.check(d); err != nil {
					return err
				}
				var changed []stream.Job
				var failed error
				for _, id := range args {
					was, err := findJob(cmd.Context(), d, id)
					var status stream.Status
					if err == nil && name == "retry" {
						err = nothingToRetry(cmd.Context(), d, was)
					}
					if err == nil {
						status, err = do(d, cmd.Context(), was.ID)
					}
					if errors.Is(err, stream.ErrState) {
						err = fmt.Errorf("%w; next: %s", err, whatNext(&was))
					}
					if err != nil {
						failed = errors.Join(failed, err)
						continue
					}
					changed = append(changed, status.Job)
					if out.json() {
						err = encode(cmd.OutOrStdout(), false, status)
					} else {
						_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", done, status.ID)
					}
					if err != nil {
						return err
					}
				}
				if due {
					failed = errors.Join(failed, hints.send(cmd.Context(), d, cmd.ErrOrStderr(), changed...))
				}
				return failed
			},
		}
		store.register(cmd.Flags())
		out.register(cmd.Flags())
		if due {
			hints.register(cmd.Flags())
		}
		return cmd
	}
	return []*cobra.Command{
		change("pause", "Stop jobs until they are resumed; records in flight are not committed", "paused", false, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Pause(ctx, id) }),
		change("resume", "Resume paused jobs after their last commit", "resumed", true, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Resume(ctx, id) }),
		change("cancel", "End jobs; what they have committed stays", "cancelled", false, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Cancel(ctx, id) }),
		newRetryCommand(change("retry", "Resume failed or cancelled jobs after their last commit", "retried", true, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Retry(ctx, id) })),
	}
}

// limitText says how many records may go into a job's quarantine.
func limitText(maxBad int) string {
	switch maxBad {
	case 0:
		return "the worker's default"
	case stream.None:
		return "none"
	}
	return fmt.Sprint(maxBad)
}
