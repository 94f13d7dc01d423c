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

// newRetryCommand adds to the command that retries jobs by their ids what retries all that failed.
func newRetryCommand(cmd *cobra.Command) *cobra.Command {
	byID, checkIDs := cmd.RunE, cmd.Args
	var all, dryRun bool
	var reasons, streams []string
	cmd.Use = "retry ID... | --all"
	cmd.Long = `Let failed or cancelled jobs go on after their last commit. Nothing that was committed is done again.

With --all, every failed job is retried; --reason and --stream limit that to jobs that failed for these reasons, or are of these streams.
Cancelled jobs are retried by their ids only.`
	cmd.Example = `  levada stream retry 5f1c0a7e
  levada stream retry --all --reason NO_PROGRESS
  levada stream retry --all --reason PERMISSION_DENIED,UNAUTHENTICATED --stream orders --dry-run`
	flags := cmd.Flags()
	flags.BoolVar(&all, "all", false, "retry all failed jobs")
	flags.StringSliceVar(&reasons, "reason", nil, "with --all: only jobs that failed for one of these reasons, as levada stream list shows them")
	flags.StringSliceVar(&streams, "stream", nil, "with --all: only jobs of these streams")
	flags.BoolVar(&dryRun, "dry-run", false, "with --all: only print which jobs would be retried")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		usage := func(text string, a ...any) error {
			return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf(text, a...)}
		}
		switch {
		case all && len(args) > 0:
			return usage("--all retries every failed job, so it goes with no ids: leave out --all, or %s", strings.Join(args, " "))
		case !all && (len(reasons) > 0 || len(streams) > 0 || dryRun):
			return usage("--reason, --stream and --dry-run need --all, for instance: levada stream retry --all --reason NO_PROGRESS")
		case !all:
			return checkIDs(cmd, args)
		}
		for i, name := range reasons {
			reasons[i] = strings.ToUpper(strings.TrimSpace(name))
			if _, ok := reasonText[stream.Reason(reasons[i])]; !ok {
				return usage("--reason: %q is not a reason of a job, expected one or more of %s", name, strings.Trim(fmt.Sprint(slices.Sorted(maps.Keys(reasonText))), "[]"))
			}
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !all {
			return byID(cmd, args)
		}
		return retryAll(cmd, reasons, streams, dryRun)
	}
	return cmd
}

// retryAll retries failed jobs. The flags of the store, the notifications and the output are those that the command has anyway.
func retryAll(cmd *cobra.Command, reasons, streams []string, dryRun bool) (err error) {
	flag := func(name string) string { return cmd.Flags().Lookup(name).Value.String() }
	store, notifier, out := storeFlag{flag("store"), flag("store-schema")}, notifierFlag{flag("notifier")}, outputFlag{flag("output")}
	d, err := store.open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer d.closing(&err)
	if err := notifier.check(d); err != nil {
		return err
	}
	// Those that fail again meanwhile are not retried again: the list is taken once.
	failed, err := d.List(cmd.Context(), stream.Filter{States: []stream.State{stream.Failed}, Streams: streams, Limit: 1 << 30})
	if err != nil {
		return err
	}
	found := len(failed)
	failed = slices.DeleteFunc(failed, func(s stream.Status) bool {
		return len(reasons) > 0 && !slices.Contains(reasons, string(s.Reason))
	})
	var retried []stream.Job
	var problems error
	for i := range failed {
		s, verb := failed[i], "would retry"
		if !dryRun {
			verb = "retried"
			var now stream.Status
			now, err := d.Retry(cmd.Context(), s.ID)
			if err != nil {
				problems = errors.Join(problems, err)
				if cmd.Context().Err() != nil {
					break
				}
				continue
			}
			retried = append(retried, now.Job)
			if out.json() {
				if err := encode(cmd.OutOrStdout(), false, now); err != nil {
					return err
				}
				continue
			}
		} else if out.json() {
			if err := encode(cmd.OutOrStdout(), false, s); err != nil {
				return err
			}
			continue
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s  stream %s, failed with %s after %d records\n", verb, s.ID, commandline.Printable(s.Stream), s.Reason, s.Progress.Records); err != nil {
			return err
		}
	}
	problems = errors.Join(problems, notifier.send(cmd.Context(), d, cmd.ErrOrStderr(), retried...))
	summary := fmt.Sprintf("%d of %d failed jobs retried", len(retried), found)
	switch {
	case found == 0:
		summary = "no job has failed, nothing to retry"
	case len(failed) == 0:
		summary = fmt.Sprintf("none of %d failed jobs failed for %s, nothing to retry", found, strings.Join(reasons, " or "))
	case dryRun:
		summary = fmt.Sprintf("%d of %d failed jobs would be retried", len(failed), found)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), summary)
	return problems
}
