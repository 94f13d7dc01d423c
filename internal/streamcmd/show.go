package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
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
			return store.withJob(cmd.Context(), args[0], func(d *database, status stream.Status) (err error) {
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
			})
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
	if s.RetryState.Failures > 0 {
		field("attempts", "%d claims; the last %d attempts failed%s", s.Attempts, s.RetryState.Failures, limitsText(s))
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
	if j := s.CrashState; j != (stream.CrashState{}) {
		text := fmt.Sprintf("a record up to %s may have crashed its process; the handler gets %d records at once", humanize.Comma(int64(j.SuspectUntil)), j.BatchLimit)
		if j.InFlightSeq > 0 {
			text += fmt.Sprintf("; record %s is in flight", humanize.Comma(int64(j.InFlightSeq)))
		}
		if j.Crashes > 0 {
			text += fmt.Sprintf("; %d processes crashed with it alone", j.Crashes)
		}
		field("crash state", "%s", text)
	}
	moment("created", s.CreatedAt)
	if s.State == stream.Ready && s.NotBefore.After(now) {
		moment(map[bool]string{true: "next attempt", false: "not before"}[s.RetryState.Failures > 0], s.NotBefore)
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
// in Go, and bytes that are not UTF-8 in hexadecimal.
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
		if s.NotBefore.After(time.Now()) && s.RetryState.Failures == 0 {
			return "nothing: a worker claims it once its time has come"
		}
		if s.RetryState.Failures > 0 {
			return "nothing, if workers run: they try again; " + waitingText(s.Reason)
		}
		return fmt.Sprintf("nothing, if a worker for the stream runs (levada stream work --stream %s)", commandline.Printable(s.Stream))
	case stream.Running:
		if s.RetryState.Failures > 0 {
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
