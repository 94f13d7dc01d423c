package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
)

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
	var store connect.StoreFlags
	var out outputFlag
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show a job with all that is known of it, and what to do next", Args: jobArguments(1), Annotations: map[string]string{"one": "job"},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			return store.WithJob(cmd.Context(), args[0], func(d *connect.Database, status stream.Status) (err error) {
				v := jobView{Status: status, Quarantine: map[stream.QuarantineState]int{}, Next: whatNext(&status)}
				if err := v.readSink(cmd.Context(), d); err != nil {
					if cmd.Context().Err() != nil {
						return err
					}
					v.Unread = err.Error()
				}
				if out.json() {
					return commandline.WriteJSON(cmd.OutOrStdout(), true, v)
				}
				return showJob(cmd.OutOrStdout(), &v, time.Now())
			})
		},
	}
	store.Register(cmd.Flags())
	out.register(cmd.Flags())
	return cmd
}

// readSink adds what the sink knows of the job.
func (v *jobView) readSink(ctx context.Context, d *connect.Database) error {
	rows, err := d.Offsets().Quarantined(ctx, v.ID, 100000)
	if err != nil {
		return err
	}
	for i := range rows {
		v.Quarantine[rows[i].State]++
	}
	if v.State == stream.Completed {
		v.Next = completedNext(jobtext.ShortID(v.ID), v.Quarantine[stream.Waiting])
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
func readCheckpoint(ctx context.Context, d *connect.Database, job string) (stream.Checkpoint, error) {
	for tries := 1; ; tries++ {
		status, err := d.Get(ctx, job)
		if err != nil || status.Epoch == 0 {
			return stream.Checkpoint{}, err
		}
		checkpoint, err := d.Offsets().Fence(ctx, status.Lease())
		if !errors.Is(err, stream.ErrFenced) || tries == 10 {
			return checkpoint, err
		}
	}
}

// fields writes what is known of a job, a line each.
type fields struct{ *tabwriter.Writer }

func (f fields) add(name string, format string, args ...any) {
	fmt.Fprintf(f, "%s:\t%s\n", name, fmt.Sprintf(format, args...))
}

// text leaves out an empty value.
func (f fields) text(name, value string) {
	if value != "" {
		f.add(name, "%s", commandline.Printable(value))
	}
}

// moment leaves out a time that has not come.
func (f fields) moment(name string, t time.Time) {
	if !t.IsZero() {
		f.add(name, "%s", t.Local().Format(time.RFC3339))
	}
}

func showJob(out io.Writer, v *jobView, now time.Time) error {
	f := fields{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	f.add("job", "%s", commandline.Printable(v.ID))
	f.add("stream", "%s", commandline.Printable(v.Stream))
	f.add("state", "%s", v.State)
	f.progress(v, now)
	f.sink(v)
	f.request(&v.Job)
	f.attempts(&v.Status)
	f.times(&v.Status, now)
	if meaning := reasonText[v.Reason]; meaning != "" {
		f.add("reason", "%s: %s", v.Reason, meaning)
	} else {
		f.text("reason", string(v.Reason))
	}
	f.text("last error", v.LastError)
	f.add("next", "%s", v.Next)
	return f.Flush()
}

func (f fields) progress(v *jobView, now time.Time) {
	f.add("records", "%s", humanize.Comma(int64(v.Progress.Records)))
	if v.Progress.Size > 0 {
		f.add("size", "%s records (%s)", humanize.Comma(int64(v.Progress.Size)), jobtext.Percent(v.Progress))
	}
	f.add("bytes", "%s", humanize.IBytes(v.Progress.Bytes))
	if rate := averageRate(&v.Status, now); rate > 0 {
		f.add("rate", "%s records/s on average", humanize.Comma(int64(rate)))
	}
}

func (f fields) sink(v *jobView) {
	if c := v.Checkpoint; c != nil {
		f.add("checkpoint", "after record %s, digest %s%s", humanize.Comma(int64(c.Records)), c.Digest, map[bool]string{true: ", complete"}[c.Done])
	}
	var parts []string
	for _, state := range []stream.QuarantineState{stream.Waiting, stream.Replay, stream.Replayed, stream.Dropped} {
		if n := v.Quarantine[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(v.Quarantine) > 0 {
		f.add("quarantine", "%s", strings.Join(parts, ", "))
	}
	if v.Unread != "" {
		f.add("checkpoint, quarantine", "not known: %s", commandline.Printable(v.Unread))
	}
}

// request is what was submitted.
func (f fields) request(j *stream.Job) {
	f.text("target", j.Target)
	if len(j.Query) > 0 {
		f.add("query", "%s", commandline.FirstLine(jobtext.Payload(j.Query)))
	}
	f.text("dedupe key", j.DedupeKey)
	f.add("on bad", "%s, at most %s", j.OnBad, limitText(j.MaxBad))
	if j.Priority != 0 {
		f.add("priority", "%d", j.Priority)
	}
}

func (f fields) attempts(s *stream.Status) {
	if s.RetryState.Failures > 0 {
		f.add("attempts", "%d claims; the last %d attempts failed%s", s.Attempts, s.RetryState.Failures, limitsText(s))
	} else {
		f.add("attempts", "%d claims", s.Attempts)
	}
	f.add("epoch", "%d", s.Epoch)
	if s.Owner != (stream.Owner{}) {
		f.add(map[bool]string{true: "owner", false: "last owner"}[s.State == stream.Running], "%s", commandline.Printable(s.Owner.String()))
	}
	if s.State == stream.Running {
		f.add("lease", "until %s", s.LeaseUntil.Local().Format(time.RFC3339))
	}
	if s.CrashState != (stream.CrashState{}) {
		f.add("crash state", "%s", crashText(s.CrashState))
	}
}

// crashText says how far the search for a record that crashes its process has come.
func crashText(c stream.CrashState) string {
	text := fmt.Sprintf("a record up to %s may have crashed its process; the handler gets %d records at once", humanize.Comma(int64(c.SuspectUntil)), c.BatchLimit)
	if c.InFlightSeq > 0 {
		text += fmt.Sprintf("; record %s is in flight", humanize.Comma(int64(c.InFlightSeq)))
	}
	if c.Crashes > 0 {
		text += fmt.Sprintf("; %d processes crashed with it alone", c.Crashes)
	}
	return text
}

func (f fields) times(s *stream.Status, now time.Time) {
	f.moment("created", s.CreatedAt)
	if s.State == stream.Ready && s.NotBefore.After(now) {
		f.moment(map[bool]string{true: "next attempt", false: "not before"}[s.RetryState.Failures > 0], s.NotBefore)
	}
	f.moment("started", s.StartedAt)
	f.moment("updated", s.UpdatedAt)
	f.moment("finished", s.FinishedAt)
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
