package stream

import "errors"

// Verdict is what an error of a handler, a sink or a source says about what to do next.
type Verdict uint8

const (
	// NoVerdict: the error is not marked. It is retried, since a temporary fault must never become a skip, and fails the job after WorkerConfig.NoProgress.
	NoVerdict    Verdict = iota
	VerdictRetry         // see Retry
	VerdictSkip          // see Skip
	VerdictLater         // see Later
	VerdictHalt          // see Halt
)

// String returns the name of the function that marks errors with the verdict, in lower case; "" for NoVerdict.
func (v Verdict) String() string {
	return [...]string{"", "retry", "skip", "later", "halt"}[v]
}

type verdictError struct {
	verdict Verdict
	err     error
}

func (e *verdictError) Error() string { return e.err.Error() }
func (e *verdictError) Unwrap() error { return e.err }

// Skip marks an error as the record's own fault: trying again would not help. The record goes into quarantine, or
// the job halts, as its policy says. From a handler that was given several records it means that one of them is bad:
// the batch is halved until it is found; [Batch.Skip] names it at once.
func Skip(err error) error { return marked(VerdictSkip, err) }

// Later marks an error that depends on something else that may still come, such as a row of another stream that this one refers to. The
// records are tried again, with pauses, for WorkerConfig.DependencyWait; then the error is as if marked with Skip.
func Later(err error) error { return marked(VerdictLater, err) }

// Retry marks an error as one that passes, however long it takes: the job waits and never fails for it. Errors without a mark are tried
// again too, and fail the job after WorkerConfig.NoProgress.
func Retry(err error) error { return marked(VerdictRetry, err) }

// Halt marks an error that needs a person: the job fails, and nothing after the last commit is processed.
func Halt(err error) error { return marked(VerdictHalt, err) }

// VerdictOf returns what an error is marked with. Sinks that know their database's errors mark only those that their handler has not.
func VerdictOf(err error) Verdict {
	if v, ok := errors.AsType[*verdictError](err); ok {
		return v.verdict
	}
	return NoVerdict
}

// marked leaves nil as it is, so that a handler may mark the result of a call without looking at it.
func marked(v Verdict, err error) error {
	if err == nil {
		return nil
	}
	return &verdictError{v, err}
}

// retried reports whether an error with the verdict is temporary, so that the same attempt is repeated as it is.
func retried(v Verdict) bool { return v == NoVerdict || v == VerdictRetry }
