package stream

import (
	"errors"
	"slices"
	"strings"
	"time"
)

// Attempt is the result of one failed attempt at a quarantined record.
type Attempt struct {
	Time  time.Time `json:"time"`
	Class Class     `json:"class"`
	// Error is the error's text, or the panic's value.
	Error string `json:"error"`
	// Stack is that of the goroutine that panicked.
	Stack string `json:"stack,omitempty"`
}

// MaxAttempts bounds Quarantined.History: the first attempt and the latest are kept.
const MaxAttempts = 20

// Text of one attempt is cut to these many bytes, so that a record that is replayed often does not grow without bounds.
const (
	maxAttemptError = 16 << 10
	maxAttemptStack = 32 << 10
)

// NewAttempt describes an attempt that failed now. A [PanicError] gives it its stack.
func NewAttempt(class Class, why error) Attempt {
	a := Attempt{Time: time.Now().UTC(), Class: class, Error: cutText(why.Error(), maxAttemptError)}
	if p, ok := errors.AsType[*PanicError](why); ok {
		a.Stack = cutText(string(p.Stack), maxAttemptStack)
	}
	return a
}

func cutText(text string, most int) string {
	if len(text) > most {
		text = text[:most] + "... (cut)"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// Refused returns the record after another attempt at it that failed: it is Waiting again, with the attempt's class and error, and the
// attempts before it are kept in its history.
func (q Quarantined) Refused(a Attempt) Quarantined {
	if len(q.History) == 0 { // from a version that kept the last error alone
		q.History = []Attempt{{Time: q.FirstSeen, Class: q.Class, Error: q.Error}}
	}
	q.History = append(slices.Clone(q.History), a)
	if over := len(q.History) - MaxAttempts; over > 0 {
		q.History = slices.Delete(q.History, 1, 1+over)
	}
	q.State, q.Class, q.Error = Waiting, a.Class, a.Error
	q.Attempts++
	return q
}
