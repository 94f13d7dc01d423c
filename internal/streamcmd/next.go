package streamcmd

import (
	"context"
	"fmt"
	"time"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
)

// completedNext says what to do about a completed job of which so many records wait in quarantine. Those that were replayed or dropped do not.
func completedNext(id string, waiting int) string {
	if waiting > 0 {
		return fmt.Sprintf("levada stream quarantine list %s: %d records wait in quarantine", id, waiting)
	}
	return "nothing: it is complete"
}

// whatNext says what a person can do about a job.
func whatNext(s *stream.Status) string {
	id := jobtext.ShortID(s.ID)
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
	return failedNext(id, s.Reason)
}

// failedNext says what to do about a job that failed.
func failedNext(id string, reason stream.Reason) string {
	retry := fmt.Sprintf("then levada stream retry %s, which goes on after the last commit", id)
	switch reason {
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
func nothingToRetry(ctx context.Context, d *connect.Database, s stream.Status) error {
	if s.State != stream.Completed {
		return nil
	}
	marked, err := d.Offsets().Quarantined(ctx, s.ID, 1, stream.Replay)
	if err != nil || len(marked) > 0 {
		return err
	}
	return fmt.Errorf("job %s is complete, nothing to retry: quarantined records are handed over again with `levada stream quarantine replay %s SEQ...`, and records that came since need a new job", s.ID, jobtext.ShortID(s.ID))
}
