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

// A cause is why an attempt failed, as far as it decides what comes next.
type cause struct {
	reason Reason
	limit  limit
	after  time.Duration // the other side asks to wait for so long at least; 0: it does not say
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
func (c Cut) cause() cause {
	switch {
	case c.Denied:
		return cause{c.Reason, denied, c.After}
	case status.Code(c.Err) == codes.ResourceExhausted: // a refusal for lack of room says nothing about the stream, from the producer or a proxy
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

// causeOf tells why a handler or a sink failed. Errors that say nothing count towards NoProgress; everything that is known to be an outage of
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

// correctable recognises what a person has to put right in a database: privileges and the schema. No such error ends by itself, and yet one may be
// that of a rollout whose other half is still to come: so the job does not fail at once either. Empty: it is neither.
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

// outageOf recognises errors of what handlers and sinks use, however they are wrapped. Empty: it knows none.
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

// WithReason names why a handler or a sink failed, in logs and in the job's status. What is to be done is said by [Skip], [Later], [Retry] and
// [Halt], if one of them is there; the reasons of the first group in this package's list, such as [ReasonPoolExhausted], otherwise mean Retry.
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

// leaveError gives a job back, to be tried again by any worker.
type leaveError struct {
	cause
	err error
}

func (e *leaveError) Error() string { return e.err.Error() }
func (e *leaveError) Unwrap() error { return e.err }

// tooSlow reports whether the commit failed because its time was over, so that fewer records may help.
func tooSlow(err error) bool { return causeOf(err).reason == ReasonTooSlow }

// fail decides what comes after a failed attempt, and waits. It returns nil for another attempt, and otherwise why there will be none here: the
// job has failed for good, goes back to the store until its pause is over, is lost, or the worker shuts down.
func (r *run) fail(err error, c cause) error {
	now := time.Now()
	spent := now.Sub(r.tried)
	r.tries++
	r.stall.Failures++
	after := r.config.Retry.after(r.stall.Failures)
	if c.after > 0 {
		after = max(c.after, min(after, 5*c.after))
	}
	r.event(Event{Kind: EventRetry, Reason: c.reason, Err: err})
	r.report(err, c, after)
	r.last = &leaveError{c, err}
	config := r.config
	switch c.limit {
	case denied:
		if r.stall.Denied += spent; config.DeniedGrace >= 0 && r.stall.Denied >= config.DeniedGrace {
			return &failure{c.reason, fmt.Errorf("refused for %v, which is the grace for policies and replicas that are being rolled out (DeniedGrace): %w", r.stall.Denied.Round(time.Second), err)}
		}
		r.stall.Denied += after
	case noProgress:
		if r.stall.NoProgress += spent; config.NoProgress >= 0 && r.stall.NoProgress >= config.NoProgress {
			return &failure{ReasonNoProgress, fmt.Errorf("%w for %v at record %d, in %d attempts (%s): %w", ErrNoProgress, r.stall.NoProgress.Round(time.Second), r.checkpoint.Seq+1, r.stall.Failures, c.reason, err)}
		}
		r.stall.NoProgress += after
	case dependent:
		r.stall.Dependent += spent + after
	}
	// A pause that is longer than it takes to find the job again is not spent in one of the worker's slots, which other streams may need.
	if !r.pinned && (r.tries >= config.HandOver || after > max(config.Sweep, time.Second)) {
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
// claimed again and again is not logged anew each time.
func (r *run) report(err error, c cause, after time.Duration) {
	level := slog.LevelDebug
	if n := r.stall.Failures; n&(n-1) == 0 || n%20 == 0 || r.last != nil && r.last.reason != c.reason {
		level = slog.LevelWarn
	}
	r.log.Log(r.own, level, "attempt failed, it is repeated", "reason", c.reason, "failures", r.stall.Failures, "record", r.checkpoint.Seq+1, "retry_in", after.Round(time.Millisecond), "error", err)
}

// restart is what each record that was committed does to the count of failures.
func (r *run) restart() {
	r.tries, r.stall, r.last = 0, Stall{}, nil
}

// patient reports whether records that depend on others are to be tried again. The time is for all records up to last together: once it is
// over, those that still fail are bad, without a wait for each. A wait in vain halves the next one, so that a stream of orphans
// gets through; one that was worth it brings back the whole.
func (r *run) patient(last uint64) bool {
	if last <= r.waited {
		return false
	}
	if r.patience >= 0 && (r.stall.Dependent >= r.patience || r.patience <= AtOnce) {
		r.log.Warn("wait for other rows is over, records that still fail are bad", "waited", r.stall.Dependent.Round(time.Millisecond), "to_record", last)
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
