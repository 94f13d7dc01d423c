package stream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/stream"
)

// A replay that panicked again overwrote the evidence with "the handler panicked when the record was replayed": neither the value nor the stack
// of any attempt was left.
func TestQuarantineKeepsEveryAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log said
		l := newLab(t, startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbered(5)...)).connections(t).Dial)
		l.config.Logger = slog.New(slog.NewTextHandler(&log, nil))
		tries := 0
		sink := l.store.Sink(func(_ context.Context, b *stream.Batch) (func(), error) {
			for _, r := range b.Records {
				if r.Seq == 3 && len(b.Records) == 1 {
					tries++
					panic(fmt.Sprintf("value of attempt %d", tries))
				} else if r.Seq == 3 {
					panic("one of them")
				}
			}
			return nil, nil
		})
		l.submit(stream.Job{ID: "j", Stream: "s"})
		w := l.start("s", sink)
		l.is(l.end("j", time.Minute), stream.Completed, "")
		if !strings.Contains(log.String(), "record quarantined") || !strings.Contains(log.String(), "record=3") {
			t.Errorf("the quarantined record is not logged:\n%s", log.String())
		}
		if n, err := l.store.MarkQuarantined(t.Context(), "j", stream.Replay); n != 1 || err != nil {
			t.Fatalf("marked %d, error %v", n, err)
		}
		if _, err := l.store.Retry(t.Context(), "j"); err != nil {
			t.Fatal(err)
		}
		l.is(l.end("j", time.Minute), stream.Completed, "")
		w.stop()
		rows, err := l.store.Quarantined(t.Context(), "j", 0)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%+v, error %v", rows, err)
		}
		q := rows[0]
		if q.Attempts != 3 || len(q.History) != 3 || q.State != stream.Waiting || string(q.Payload) == "" {
			t.Fatalf("the record is %+v, want 3 attempts, all of them known", q)
		}
		for i, a := range q.History {
			if want := fmt.Sprintf("value of attempt %d", i+1); !strings.Contains(a.Error, want) || a.Class != stream.ClassPanic || !strings.Contains(a.Stack, "evidence_test.go") || a.Time.IsZero() {
				t.Errorf("attempt %d is %+v, want %q with a stack", i+1, a, want)
			}
		}
	})
}

// A record that is replayed for months must not grow without bounds, and the first attempt is the one that says most.
func TestHistoryIsBounded(t *testing.T) {
	q := stream.Quarantined{Class: stream.ClassRefused, Error: "first", Attempts: 1, FirstSeen: time.Unix(1, 0)}
	for i := range 100 {
		q = q.Refused(stream.NewAttempt(stream.ClassPanic, &stream.PanicError{Value: fmt.Sprint(i), Stack: make([]byte, 1<<20)}))
	}
	last := q.History[len(q.History)-1]
	if len(q.History) != stream.MaxAttempts || q.History[0].Error != "first" || !strings.Contains(last.Error, "99") || len(last.Stack) > 64<<10 || q.Attempts != 101 {
		t.Errorf("%d attempts are kept, the first %q, the last %q with a stack of %d bytes; %d were made", len(q.History), q.History[0].Error, last.Error, len(last.Stack), q.Attempts)
	}
	if a := stream.NewAttempt(stream.ClassRefused, errors.New("\xff")); strings.Contains(a.Error, "\xff") {
		t.Errorf("text %q is no UTF-8", a.Error)
	}
}

// said is a log.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Records that a handler refuses, or that the producer could not make, went into quarantine without a line in the log.
func TestQuarantinedRecordsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := numbered(100)
		records[4].Bad = "cannot be made"
		var log said
		l := newLab(t, startProducer(t, stream.ServerConfig{}, "s", stream.Slice(records...)).connections(t).Dial)
		l.config.Logger = slog.New(slog.NewTextHandler(&log, nil))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), stream.Each(func(_ context.Context, _ *stream.Batch, r stream.Record) error {
			if r.Seq > 20 {
				return stream.Skip(fmt.Errorf("refused %d", r.Seq))
			}
			return nil
		})))
		l.is(l.end("j", time.Minute), stream.Completed, "")
		for _, want := range []string{"record=5 ", "class=producer", "cannot be made", "record=21", "refused 21", "more records quarantined in the same commit", "last="} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log does not say %s", want)
			}
		}
		if n := strings.Count(log.String(), "record quarantined"); n > 50 { // 10 for each of a few commits
			t.Errorf("%d lines for 81 records", n)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
}
