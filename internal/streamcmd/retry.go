package streamcmd

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/stream"
)

// reasonText says what the reasons of jobs mean.
var reasonText = map[stream.Reason]string{
	stream.ReasonOutage:            "something that is needed could not be reached",
	stream.ReasonBusy:              "the producer takes no more calls for now",
	stream.ReasonTooManyStreams:    "the producer serves as many streams as it may (MaxStreams)",
	stream.ReasonDraining:          "the producer shuts down",
	stream.ReasonSourceFailed:      "the producer's source failed",
	stream.ReasonSourcePanicked:    "the producer's source panicked",
	stream.ReasonBadRequest:        "the producer cannot serve the request",
	stream.ReasonPoolExhausted:     "no connection of the worker's pool to the database became free in time",
	stream.ReasonLockWait:          "another transaction held a lock",
	stream.ReasonStorageFull:       "no space is left",
	stream.ReasonOverloaded:        "the database has no memory or no connections left",
	stream.ReasonShutdown:          "the worker was stopped",
	stream.ReasonNewer:             "a newer version has written it, and a worker of that version is needed",
	stream.ReasonNoHandler:         "the worker has no handler for the stream",
	stream.ReasonHandlerFailed:     "the handler returned an error",
	stream.ReasonTooSlow:           "one record alone takes longer than the handler may",
	stream.ReasonCorrupt:           "what the producer sends contradicts itself",
	stream.ReasonDependentRows:     "rows that a record depends on are missing or in the way",
	stream.ReasonPrivilege:         "the database role lacks a privilege that a statement needs",
	stream.ReasonSchema:            "a table or column that a statement names is missing, or is another",
	stream.ReasonUnknownStream:     "the producer has no stream of that name",
	stream.ReasonUnauthenticated:   "the producer does not accept the worker's credentials",
	stream.ReasonPermissionDenied:  "the producer denies the worker the stream",
	stream.ReasonUnimplemented:     "who answers does not serve streams",
	stream.ReasonBadToken:          "the producer did not issue this position",
	stream.ReasonQueryChanged:      "the position belongs to another query, order or schema",
	stream.ReasonGenerationChanged: "the source was restored or replaced",
	stream.ReasonPositionGone:      "the source has dropped the records after the position",
	stream.ReasonOutOfOrder:        "the source's keys do not grow",
	stream.ReasonSourceHalted:      "the source said Halt",
	stream.ReasonHalted:            "the handler or the job's policy said Halt",
	stream.ReasonTooManyBad:        "more records than allowed are in quarantine",
	stream.ReasonNoProgress:        "no attempt came any further for too long",
	stream.ReasonIncomplete:        "what was committed is not what the producer says there was",
	stream.ReasonRefused:           "the producer refused it for good",
}

// waitingText says what a person can do while a job waits for this.
func waitingText(reason stream.Reason) string {
	switch reason {
	case stream.ReasonTooManyStreams, stream.ReasonBusy:
		return "if it stays, raise MaxStreams at the producer, or start more replicas"
	case stream.ReasonPoolExhausted:
		return "if it stays, give the worker's pool more connections, or the worker fewer jobs"
	case stream.ReasonLockWait:
		return "if it stays, find the transaction that holds the lock (pg_stat_activity, pg_locks)"
	case stream.ReasonStorageFull:
		return "if it stays, make room where the last error says"
	case stream.ReasonTooSlow:
		return "make the handler quicker, or raise its limit, which the last error names"
	case stream.ReasonUnauthenticated, stream.ReasonPermissionDenied, stream.ReasonUnknownStream, stream.ReasonUnimplemented:
		return "it fails if this stays for the grace of some minutes: check target, credentials and policy"
	case stream.ReasonPrivilege:
		return "grant the privilege that the last error names; the job fails if it is missing for the time of --no-progress"
	case stream.ReasonSchema:
		return "apply the migration that is missing (`levada stream migrate --check` compares the tables of jobs), or run the version of the worker that fits the tables; the job fails if that takes longer than --no-progress"
	case stream.ReasonDependentRows:
		return "the records go into quarantine if the rows do not come"
	}
	return "look at the last error if it stays"
}

// limitsText says how much of its limits a job has used up.
func limitsText(s *stream.Status) string {
	text := ""
	for _, part := range []struct {
		what string
		d    time.Duration
	}{{"without progress", s.RetryState.NoProgress}, {"denied", s.RetryState.Denied}, {"waiting for other rows", s.RetryState.Dependent}} {
		if part.d > 0 {
			text += fmt.Sprintf(", %v %s", part.d.Round(100*time.Millisecond), part.what)
		}
	}
	return text
}

// retryFlags are those of the retry of all failed jobs.
type retryFlags struct {
	*change
	all, dryRun      bool
	reasons, streams []string
}

// newRetryCommand adds to the command that retries jobs by their ids what retries all that failed.
func newRetryCommand(byID *change) *cobra.Command {
	f := retryFlags{change: byID}
	cmd := byID.command("Resume failed or cancelled jobs after their last commit")
	checkIDs := cmd.Args
	cmd.Use = "retry ID... | --all"
	cmd.Long = `Let failed or cancelled jobs go on after their last commit. Nothing that was committed is done again.

With --all, every failed job is retried; --reason and --stream limit that to jobs that failed for these reasons, or are of these streams.
Cancelled jobs are retried by their ids only.`
	cmd.Example = `  levada stream retry 5f1c0a7e
  levada stream retry --all --reason NO_PROGRESS
  levada stream retry --all --reason PERMISSION_DENIED,UNAUTHENTICATED --stream orders --dry-run`
	flags := cmd.Flags()
	flags.BoolVar(&f.all, "all", false, "retry all failed jobs")
	flags.StringSliceVar(&f.reasons, "reason", nil, "with --all: only jobs that failed for one of these reasons, as levada stream list shows them")
	flags.StringSliceVar(&f.streams, "stream", nil, "with --all: only jobs of these streams")
	flags.BoolVar(&f.dryRun, "dry-run", false, "with --all: only print which jobs would be retried")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := f.check(args); err != nil || f.all {
			return err
		}
		return checkIDs(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !f.all {
			return byID.run(cmd, args)
		}
		return f.retryAll(cmd)
	}
	return cmd
}

// check refuses a mixture of ids and --all, and brings the reasons into the form in which jobs have them.
func (f *retryFlags) check(ids []string) error {
	switch {
	case f.all && len(ids) > 0:
		return commandline.Usagef("--all retries every failed job, so it goes with no ids: leave out --all, or %s", strings.Join(ids, " "))
	case !f.all && (len(f.reasons) > 0 || len(f.streams) > 0 || f.dryRun):
		return commandline.Usagef("--reason, --stream and --dry-run need --all, for instance: levada stream retry --all --reason NO_PROGRESS")
	}
	for i, name := range f.reasons {
		f.reasons[i] = strings.ToUpper(strings.TrimSpace(name))
		if _, ok := reasonText[stream.Reason(f.reasons[i])]; !ok {
			return commandline.Usagef("--reason: %q is not a reason of a job, expected one or more of %s", name, strings.Trim(fmt.Sprint(slices.Sorted(maps.Keys(reasonText))), "[]"))
		}
	}
	return nil
}

func (f *retryFlags) retryAll(cmd *cobra.Command) (err error) {
	d, err := f.store.Open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer d.Closing(&err)
	if err := f.notifier.Check(d); err != nil {
		return err
	}
	// Those that fail again meanwhile are not retried again: the list is taken once.
	failed, err := d.List(cmd.Context(), stream.Filter{States: []stream.State{stream.Failed}, Streams: f.streams, Limit: 1 << 30})
	if err != nil {
		return err
	}
	found := len(failed)
	failed = slices.DeleteFunc(failed, func(s stream.Status) bool {
		return len(f.reasons) > 0 && !slices.Contains(f.reasons, string(s.Reason))
	})
	retried, problems, err := f.retryEach(cmd, d, failed)
	if err != nil {
		return err
	}
	problems = errors.Join(problems, f.notifier.Send(cmd.Context(), d, cmd.ErrOrStderr(), retried...))
	fmt.Fprintln(cmd.ErrOrStderr(), f.summary(found, len(failed), len(retried)))
	return problems
}

// retryEach returns the jobs that it retried, and the problems with others. err is one of the output, which ends the command.
func (f *retryFlags) retryEach(cmd *cobra.Command, d *connect.Database, failed []stream.Status) (retried []stream.Job, problems, err error) {
	for i := range failed {
		now, verb := failed[i], "would retry"
		if !f.dryRun {
			verb = "retried"
			if now, err = d.Retry(cmd.Context(), failed[i].ID); err != nil {
				problems = errors.Join(problems, err)
				if cmd.Context().Err() != nil {
					break
				}
				continue
			}
			retried = append(retried, now.Job)
		}
		if f.out.json() {
			err = commandline.WriteJSON(cmd.OutOrStdout(), false, now)
		} else {
			s := &failed[i]
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s  stream %s, failed with %s after %d records\n", verb, s.ID, commandline.Printable(s.Stream), s.Reason, s.Progress.Records)
		}
		if err != nil {
			return retried, problems, err
		}
	}
	return retried, problems, nil
}

// summary says how many of the failed jobs that were found had one of the reasons, and were retried.
func (f *retryFlags) summary(found, chosen, retried int) string {
	switch {
	case found == 0:
		return "no job has failed, nothing to retry"
	case chosen == 0:
		return fmt.Sprintf("none of %d failed jobs failed for %s, nothing to retry", found, strings.Join(f.reasons, " or "))
	case f.dryRun:
		return fmt.Sprintf("%d of %d failed jobs would be retried", chosen, found)
	}
	return fmt.Sprintf("%d of %d failed jobs retried", retried, found)
}
