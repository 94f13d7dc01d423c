package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/stream"
)

// With effects outside the sink each record is handed over at least once, in order, by a key that stays the same; what the handler quarantines
// is kept, and can be replayed.
func TestAtLeastOnce(t *testing.T) {
	withProducer(t, stream.Slice(numbers(40)...), func(l *lab) {
		l.config.CommitRecords = 10
		var calls []string // of the other service
		mended, n := false, 0
		service := func(_ context.Context, b *stream.Batch, r stream.Record) error {
			switch n++; {
			case r.Seq == 7 && !mended:
				return stream.Skip(errors.New("no such user"))
			case n == 15:
				return stream.Retry(errors.New("503"))
			}
			calls = append(calls, b.IdempotencyKey(r))
			return nil
		}
		lost := false
		offsets := &interceptedSink{ReplaySink: l.store.Sink(nil), before: func(_ context.Context, method string) error {
			if method == "Commit" && n > 30 && !lost {
				lost = true
				return errors.New("connection lost")
			}
			return nil
		}}
		l.start("s", stream.AtLeastOnce(offsets, stream.Each(service)))
		job := l.end(l.submit(stream.Job{ID: "j", Stream: "s"}).ID, time.Hour)
		l.is(job, stream.Completed, "")
		var want []string
		for i := range 40 {
			if i != 6 {
				want = append(want, fmt.Sprintf("j/%d", i+1))
			}
		}
		once := slices.Clone(calls)
		slices.Sort(once)
		slices.Sort(want)
		if once = slices.Compact(once); !slices.Equal(once, want) || len(calls) != len(want) || !lost {
			t.Errorf("%d calls with %d keys: %v", len(calls), len(once), calls)
		}
		if rows := l.aside("j"); len(rows) != 1 || rows[0].Seq != 7 || rows[0].Class != stream.ClassRefused || rows[0].Error != "no such user" || job.Progress.Bad != 1 {
			t.Fatalf("quarantine: %+v, %+v", rows, job.Progress)
		}
		for _, state := range []stream.QuarantineState{stream.Waiting, stream.Replayed} {
			mended = state == stream.Replayed
			if n, err := l.store.MarkQuarantined(t.Context(), "j", stream.Replay); err != nil || n != 1 {
				t.Fatal(n, err)
			}
			if _, err := l.store.Retry(t.Context(), "j"); err != nil {
				t.Fatal(err)
			}
			l.is(l.end("j", time.Minute), stream.Completed, "")
			if rows := l.aside("j"); rows[0].State != state {
				t.Errorf("%s, not %s", rows[0].State, state)
			}
		}
		if calls[len(calls)-1] != "j/7" {
			t.Errorf("the last call was for %s", calls[len(calls)-1])
		}
	})
}

// A checkpoint that a newer version has written is left to a worker that knows it.
func TestNewerCheckpointsAreLeft(t *testing.T) {
	withProducer(t, stream.Slice(numbers(5)...), func(l *lab) {
		newer := true
		l.start("s", &interceptedSink{ReplaySink: l.store.Sink(l.table.handle), before: func(context.Context, string) error {
			if newer {
				return fmt.Errorf("the row has version 2: %w", stream.ErrNewer)
			}
			return nil
		}})
		job := l.submit(stream.Job{Stream: "s"})
		time.Sleep(time.Hour)
		status := l.get(job.ID)
		if status.State.Final() || !strings.Contains(status.LastError, stream.ErrNewer.Error()) || status.RetryState.NoProgress != 0 || status.Reason != stream.ReasonNewer {
			t.Errorf("%+v", status)
		}
		newer = false
		l.is(l.end(job.ID, 5*time.Minute), stream.Completed, "")
		must(t, l.table.holds(numbers(5)))
	})
}

// The quarantine cannot be read, or written, for a while: the replay waits.
func TestReplayWhileTheSinkIsAway(t *testing.T) {
	withProducer(t, stream.Slice(numbers(5)...), func(l *lab) {
		refuse := true
		sink := &awayQuarantine{ReplaySink: l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if refuse && b.Records[len(b.Records)-1].Seq >= 3 && b.Records[0].Seq <= 3 {
				return nil, stream.Skip(errors.New("no"))
			}
			return l.table.handle(ctx, b)
		})}
		l.start("s", sink)
		job := l.submit(stream.Job{Stream: "s"})
		l.is(l.end(job.ID, time.Minute), stream.Completed, "")
		for _, state := range []stream.QuarantineState{stream.Waiting, stream.Replayed} {
			refuse = state == stream.Waiting
			sink.until = time.Now().Add(2 * time.Hour)
			if _, err := l.store.MarkQuarantined(t.Context(), job.ID, stream.Replay); err != nil {
				t.Fatal(err)
			}
			if _, err := l.store.Retry(t.Context(), job.ID); err != nil {
				t.Fatal(err)
			}
			l.is(l.end(job.ID, 3*time.Hour), stream.Completed, "")
			if rows := l.aside(job.ID); len(rows) != 1 || rows[0].Seq != 3 || rows[0].State != state || time.Now().Before(sink.until.Add(-time.Hour)) {
				t.Errorf("%+v", rows)
			}
		}
	})
}

// awayQuarantine reads its quarantine after an hour only, and writes it after two.
type awayQuarantine struct {
	stream.ReplaySink
	until time.Time
}

func (s *awayQuarantine) Quarantined(ctx context.Context, job string, limit int, states ...stream.QuarantineState) ([]stream.Quarantined, error) {
	if time.Now().Before(s.until.Add(-time.Hour)) {
		return nil, errors.New("connection refused")
	}
	return s.ReplaySink.Quarantined(ctx, job, limit, states...)
}

func (s *awayQuarantine) MarkQuarantined(ctx context.Context, job string, to stream.QuarantineState, seqs ...uint64) (int, error) {
	if time.Now().Before(s.until) {
		return 0, errors.New("connection refused")
	}
	return s.ReplaySink.MarkQuarantined(ctx, job, to, seqs...)
}

func (s *awayQuarantine) CommitReplay(ctx context.Context, l stream.Lease, b *stream.Batch) error {
	if time.Now().Before(s.until) {
		sleep(ctx, 30*time.Second)
	}
	return s.ReplaySink.CommitReplay(ctx, l, b)
}

// A record that the producer could not make is gone there, or is another by now: it waits, and the job ends.
func TestReplayOfRecordsThatAreOthersByNow(t *testing.T) {
	records := numbers(20)
	records[9].Bad = "cannot be encoded"
	for name, then := range map[string][]stream.Record{
		"another": func() []stream.Record {
			now := numbers(20)
			now[9].Key = []byte("00000010a")
			return now
		}(),
		"as bad": records,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &versioned{Source: stream.Slice(records...)}
				p := startProducer(t, stream.ServerConfig{}, "s", source)
				l := newLab(t, p.connections(t).Dial)
				l.start("s", l.store.Sink(l.table.handle))
				job := l.submit(stream.Job{Stream: "s"})
				l.is(l.end(job.ID, time.Minute), stream.Completed, "")
				source.Source = stream.Slice(then...)
				if n, err := l.store.MarkQuarantined(t.Context(), job.ID, stream.Replay); err != nil || n != 1 {
					t.Fatal(n, err)
				}
				if _, err := l.store.Retry(t.Context(), job.ID); err != nil {
					t.Fatal(err)
				}
				l.is(l.end(job.ID, time.Minute), stream.Completed, "")
				if rows := l.aside(job.ID); rows[0].State != stream.Waiting {
					t.Errorf("%+v", rows)
				}
				must(t, l.table.holds(records, 10))
			})
		})
	}
}

// A process that dies between a commit and its next note leaves the number of a record that is committed. The next owner took it for one that was being replayed, and
// logged a record in quarantine that had never been there.
func TestADeathAfterACommitIsNoReplay(t *testing.T) {
	withProducer(t, stream.Slice(numbers(20)...), func(l *lab) {
		l.config.CommitRecords = 5
		reached := func() bool { return l.table.len() >= 10 }
		first := l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if reached() {
				return nil, stream.Retry(errors.New("not yet"))
			}
			return l.table.handle(ctx, b)
		}))
		job := l.submit(stream.Job{Stream: "s"})
		l.await("half of it is committed", time.Minute, reached)
		must(t, first.stop())
		dead := stream.Owner{Incarnation: "dead"}
		l.await("the job is due", time.Minute, func() bool {
			claimed, err := l.store.Claim(t.Context(), stream.Claim{Owner: dead, TTL: time.Second, Max: 1})
			must(t, err)
			if len(claimed) == 0 {
				return false
			}
			lease := stream.Lease{Job: job.ID, Epoch: claimed[0].Epoch, Owner: dead}
			must(t, l.store.SaveState(t.Context(), lease, stream.CrashState{BatchLimit: 1, SuspectUntil: 20, InFlightSeq: 7}, stream.RetryState{}))
			return true
		})
		time.Sleep(2 * time.Second)
		var logged bytes.Buffer
		l.config.Logger = slog.New(slog.NewTextHandler(&logged, nil))
		second := l.start("s", l.store.Sink(l.table.handle))
		l.is(l.end(job.ID, time.Minute), stream.Completed, "")
		must(t, second.stop())
		if strings.Contains(logged.String(), "still bad") {
			t.Errorf("nothing was replayed:\n%s", &logged)
		}
	})
}
