package grpclife

import "time"

// EventKind is what happened.
type EventKind string

// Events of servers.
const (
	// StreamAging: a stream was asked to end, see [Aging].
	StreamAging EventKind = "stream_aging"
	// StreamEnded: a stream was ended because its handler had not done so within the grace. Its context is cancelled.
	StreamEnded EventKind = "stream_ended"
	// HandlerOverdue: a handler is still running five seconds after its stream was ended. It ignores its context, or waits for a
	// client that does not read. Nothing can stop it.
	HandlerOverdue EventKind = "handler_overdue"
	// HandlerReturned: a handler that was overdue has returned.
	HandlerReturned EventKind = "handler_returned"
	// CallRefused: a new stream or call was refused because of a drain.
	CallRefused EventKind = "call_refused"
	// HandlerPanicked: a handler panicked. Value and Stack say where.
	HandlerPanicked EventKind = "handler_panicked"
)

// Events of clients.
const (
	// StatusRestored: a status that hid a transport failure was made UNAVAILABLE. Class says what it was.
	StatusRestored EventKind = "status_restored"
	// CallRetried: a call is about to be tried again, After a pause.
	CallRetried EventKind = "call_retried"
	// RetryRefused: a call could have been tried again, but too many have failed of late: the budget is used up.
	RetryRefused EventKind = "retry_refused"
)

// An Event is something to count or to log. Fields that say nothing about its kind are zero.
type Event struct {
	Kind   EventKind
	Method string // as in /package.Service/Method
	Reason string // of StreamAging, StreamEnded, HandlerOverdue, HandlerReturned and CallRefused
	// After is how old the stream is or, of CallRetried, how long the pause.
	After   time.Duration
	Attempt int   // of CallRetried and RetryRefused: how many attempts have failed
	Class   Class // of StatusRestored, CallRetried and RetryRefused
	Value   any   // of HandlerPanicked: what was panicked with
	Stack   []byte
}

// An Observer receives events. It is called from many goroutines at once, and holds up the call or the timer that it is called
// from: it should count, and return. Nil observes nothing.
type Observer func(Event)

func (o Observer) see(e Event) {
	if o != nil {
		o(e)
	}
}
