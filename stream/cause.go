package stream

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/stream/internal/sqlstate"
)

// A cause is why an attempt failed, and what that means for the next.
type cause struct {
	reason Reason
	limit  limit
	after  time.Duration // the shortest pause that the peer asks for; 0: none
}

// limit says which limit of WorkerConfig an attempt counts towards.
type limit int

const (
	noLimit    limit = iota // an outage never fails a job
	noProgress              // NoProgress
	denied                  // DeniedGrace
	dependent               // DependencyWait, after which the record is bad
)

// cause of a stream that ended early.
func (c Disconnect) cause() cause {
	switch {
	case c.Denied:
		return cause{c.Reason, denied, c.After}
	case status.Code(c.Err) == codes.ResourceExhausted: // the producer or a proxy is overloaded, which says nothing about the stream
		return cause{c.Reason.or(ReasonBusy), noLimit, c.After}
	case c.Transport:
		return cause{c.Reason.or(ReasonOutage), noLimit, c.After}
	case errors.Is(c.Err, ErrCorrupt):
		return cause{ReasonCorrupt, noProgress, c.After}
	}
	return cause{c.Reason.or(ReasonRefused), noProgress, c.After}
}

func (r Reason) or(other Reason) Reason {
	if r == "" {
		return other
	}
	return r
}

// causeOf classifies the error of a handler or a sink. Unclassified errors count towards NoProgress; an outage of
// something behind the handler does not.
func causeOf(err error) cause {
	if _, ok := errors.AsType[*tooSlowError](err); ok {
		return cause{reason: ReasonTooSlow, limit: noProgress}
	}
	switch VerdictOf(err) {
	case VerdictLater:
		return cause{reason: ReasonOf(err).or(ReasonDependentRows), limit: dependent}
	case NoVerdict, VerdictRetry:
		if reason := outageOf(err); reason == ReasonTooSlow {
			return cause{reason: reason, limit: noProgress}
		} else if reason != "" {
			return cause{reason: reason}
		}
	}
	reason := ReasonOf(err).or(correctable(err)).or(ReasonHandlerFailed)
	if VerdictOf(err) == VerdictRetry {
		return cause{reason: reason}
	}
	return cause{reason: reason, limit: noProgress}
}

// correctable recognises errors that an operator has to correct in a database: privileges and the schema. They do not end by themselves, but may be
// caused by a rollout that is half done, so the job does not fail at once. Empty: it is neither.
func correctable(err error) Reason {
	switch reason := ReasonOf(err); reason {
	case ReasonPrivilege, ReasonSchema:
		return reason
	case "":
	default:
		return ""
	}
	switch sqlstate.Of(stateOf(err)) {
	case sqlstate.Privilege:
		return ReasonPrivilege
	case sqlstate.Schema:
		return ReasonSchema
	}
	return ""
}

// stateOf returns the SQLSTATE of an error, as those of pgx and lib/pq have it.
func stateOf(err error) string {
	if e, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return e.SQLState()
	}
	return ""
}

// outageOf recognises outages of systems that handlers and sinks use, however they are wrapped. Empty: none.
func outageOf(err error) Reason {
	switch reason := ReasonOf(err); reason {
	case ReasonOutage, ReasonBusy, ReasonPoolExhausted, ReasonLockWait, ReasonStorageFull, ReasonOverloaded, ReasonTooSlow:
		return reason
	case "":
	default:
		return ""
	}
	if state := stateOf(err); state != "" {
		switch sqlstate.Of(state) {
		case sqlstate.Lock:
			return ReasonLockWait
		case sqlstate.Slow:
			return ReasonTooSlow
		case sqlstate.Full:
			return ReasonStorageFull
		case sqlstate.Overload:
			return ReasonOverloaded
		case sqlstate.Outage:
			return ReasonOutage
		}
		return ""
	}
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, errno) {
			return ReasonStorageFull
		}
	}
	// An expired deadline is one of these too: the deadline of the handler's own call, since that of the whole batch makes it too slow.
	if _, ok := errors.AsType[net.Error](err); ok {
		return ReasonOutage
	}
	if e, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		switch e.GRPCStatus().Code() {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted:
			return ReasonOutage
		case codes.ResourceExhausted:
			return ReasonBusy
		}
	}
	return ""
}

// WithReason names why a handler or a sink failed, in logs and in the job's status. What to do is decided by [Skip], [Later], [Retry] and
// [Halt], if the error is marked; the reasons of the first group in this package's list, such as [ReasonPoolExhausted], otherwise mean Retry.
func WithReason(reason Reason, err error) error {
	if err == nil {
		return nil
	}
	return &reasonError{reason, err}
}

// ReasonOf returns what the error was given by [WithReason], or "".
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*reasonError](err); ok {
		return e.reason
	}
	return ""
}

type reasonError struct {
	reason Reason
	err    error
}

func (e *reasonError) Error() string { return e.err.Error() }
func (e *reasonError) Unwrap() error { return e.err }

// releaseError releases a job, for any worker to try again.
type releaseError struct {
	cause
	err error
}

func (e *releaseError) Error() string { return e.err.Error() }
func (e *releaseError) Unwrap() error { return e.err }

// tooSlow reports whether the commit failed because its time was over, so that fewer records may help.
func tooSlow(err error) bool { return causeOf(err).reason == ReasonTooSlow }

// fail decides what follows a failed attempt, and waits. It returns nil for another attempt, and otherwise why there is none here: the
// job has failed for good, is released until its pause is over, is lost, or the worker shuts down.
func (r *run) fail(err error, c cause) error {
	now := time.Now()
	spent := now.Sub(r.tried)
	r.tries++
	r.retryState.Failures++
	after := r.config.Retry.after(r.retryState.Failures)
	if c.after > 0 {
		after = max(c.after, min(after, 5*c.after))
	}
	r.event(Event{Kind: EventRetry, Reason: c.reason, Err: err})
	r.report(err, c, after)
	r.last = &releaseError{c, err}
	config := r.config
	switch c.limit {
	case denied:
		if r.retryState.Denied += spent; config.DeniedGrace >= 0 && r.retryState.Denied >= config.DeniedGrace {
			return &failure{c.reason, fmt.Errorf("refused for %v, which is the grace for policies and replicas that are being rolled out (DeniedGrace): %w", r.retryState.Denied.Round(time.Second), err)}
		}
		r.retryState.Denied += after
	case noProgress:
		if r.retryState.NoProgress += spent; config.NoProgress >= 0 && r.retryState.NoProgress >= config.NoProgress {
			return &failure{ReasonNoProgress, fmt.Errorf("%w for %v at record %d, in %d attempts (%s): %w", ErrNoProgress, r.retryState.NoProgress.Round(time.Second), r.checkpoint.Seq+1, r.retryState.Failures, c.reason, err)}
		}
		r.retryState.NoProgress += after
	case dependent:
		r.retryState.Dependent += spent + after
	}
	// A pause longer than a poll interval does not occupy one of the worker's slots, which other streams may need.
	if !r.pinned && (r.tries >= config.ReleaseAfterFailures || after > max(config.PollInterval, time.Second)) {
		r.last.after = after
		return r.last
	}
	if !r.sleep(after) {
		return r.ended()
	}
	r.tried = time.Now()
	return nil
}

// report logs a failed attempt: the first ones, each new reason, and then about one in ten minutes. The count is the store's, so a job that is
// claimed repeatedly is not logged each time.
func (r *run) report(err error, c cause, after time.Duration) {
	level := slog.LevelDebug
	if n := r.retryState.Failures; n&(n-1) == 0 || n%20 == 0 || r.last != nil && r.last.reason != c.reason {
		level = slog.LevelWarn
	}
	r.log.Log(r.leaseCtx, level, "attempt failed, retrying", "reason", c.reason, "failures", r.retryState.Failures, "record", r.checkpoint.Seq+1, "retry_in", after.Round(time.Millisecond), "error", err)
}

// restart resets the count of failures, as each committed record does.
func (r *run) restart() {
	r.tries, r.retryState, r.last = 0, RetryState{}, nil
}

// patient reports whether records that depend on others are to be tried again. The time is for all records up to last together: once it is
// over, those that still fail are bad, without a wait for each. A wait in vain halves the next one, so that a stream of orphans
// gets through; a successful wait restores it.
func (r *run) patient(last uint64) bool {
	if last <= r.waited {
		return false
	}
	if r.patience >= 0 && (r.retryState.Dependent >= r.patience || r.patience <= AtOnce) {
		r.log.Warn("wait for other rows ended, records that still fail are quarantined", "waited", r.retryState.Dependent.Round(time.Millisecond), "to_record", last)
		r.waited = last
		r.setPatience(r.patience / 2)
		return false
	}
	return true
}

// setPatience changes how long records of the job wait for others, for this worker's later claims of it too.
func (r *run) setPatience(d time.Duration) {
	if r.patience = d; r.pinned {
		return
	}
	r.host.keepPatience(r.job.ID, d, d == r.config.DependencyWait)
}
