// Package notifybus holds what all drivers of notifications do alike: the text of a notification, the end of calls at Close, and
// sending and receiving over connections that fail.
package notifybus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/stream"
)

// Channel is the notification channel of Postgres on which the job store sends notifications, and package pgnotify sends and receives them.
const Channel = "levada_stream_notifications"

// MaxText is the longest text of a notification, in bytes. Postgres takes no longer notification, and the transaction that sends one fails.
const MaxText = 7999

// Encode makes the text of a notification: "<stream> <job>", each escaped as in a query, so that any name fits. Names that are too
// long together give the empty text, which says only that some job may be due.
func Encode(h stream.Notification) string {
	if h == (stream.Notification{}) {
		return ""
	}
	text := url.QueryEscape(h.Stream) + " " + url.QueryEscape(h.Job)
	if len(text) > MaxText {
		return ""
	}
	return text
}

// Decode reads what Encode made. An error means that it is not one of ours.
func Decode(text string) (stream.Notification, error) {
	if text == "" {
		return stream.Notification{}, nil
	}
	if len(text) > MaxText {
		return stream.Notification{}, fmt.Errorf("a notification of %d bytes; %d at most were expected", len(text), MaxText)
	}
	name, job, ok := strings.Cut(text, " ")
	if !ok || strings.Contains(job, " ") {
		return stream.Notification{}, fmt.Errorf("notification %.100q: expected a stream and a job, with one space between them", text)
	}
	var h stream.Notification
	var err1, err2 error
	h.Stream, err1 = url.QueryUnescape(name)
	h.Job, err2 = url.QueryUnescape(job)
	if err := errors.Join(err1, err2); err != nil {
		return stream.Notification{}, fmt.Errorf("notification %.100q: %w", text, err)
	}
	return h, nil
}

// ErrClosed is returned by what is called, or still runs, after Close. It is a net.ErrClosed.
var ErrClosed = fmt.Errorf("notifications: %w", net.ErrClosed)

// Lifecycle ends all calls of a driver when that is closed. The zero Lifecycle is open.
type Lifecycle struct {
	mu sync.Mutex
	// ends has the cancel function of each call that has not returned. The key is a pointer, since functions cannot be compared.
	ends map[*context.CancelCauseFunc]struct{}
	// sends counts calls of Send. Invariant: it only grows while closed is false, which is what lets Close wait for it.
	sends  sync.WaitGroup
	closed bool
}

// Listening returns a context that ends with ctx or with Close. leave must be called.
func (l *Lifecycle) Listening(ctx context.Context) (inner context.Context, leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, ErrClosed
	}
	return l.enter(ctx)
}

// Sending is Listening for a call that Close waits for, and that lasts no longer than the limit.
func (l *Lifecycle) Sending(ctx context.Context, limit time.Duration) (inner context.Context, leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, ErrClosed
	}
	l.sends.Add(1)
	inner, left, _ := l.enter(ctx)
	inner, cancel := context.WithTimeout(inner, limit)
	return inner, func() { cancel(); left(); l.sends.Done() }, nil
}

func (l *Lifecycle) enter(ctx context.Context) (context.Context, func(), error) {
	inner, cancel := context.WithCancelCause(ctx)
	key := &cancel
	if l.ends == nil {
		l.ends = map[*context.CancelCauseFunc]struct{}{}
	}
	l.ends[key] = struct{}{}
	return inner, func() {
		l.mu.Lock()
		delete(l.ends, key)
		l.mu.Unlock()
		cancel(nil)
	}, nil
}

// Close ends all calls, and waits for sends. It reports whether it was the first.
func (l *Lifecycle) Close() bool {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	for end := range l.ends {
		(*end)(ErrClosed)
	}
	l.mu.Unlock()
	l.sends.Wait()
	return first
}
