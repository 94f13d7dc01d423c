package stream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

// A source made of an iterator lost all records after the first item that panicked, and the job failed. With FuncOf the item costs itself.
func TestFuncOfGoesOnAfterAnItemThatPanics(t *testing.T) {
	items := func(_ context.Context, q stream.Query) iter.Seq2[int, error] {
		return func(yield func(int, error) bool) {
			for i := 1; i <= 5; i++ {
				if key := fmt.Sprint(i); key > string(q.After) && !yield(i, nil) {
					return
				}
			}
		}
	}
	source := stream.FuncOf(items, func(i int) []byte { return []byte(fmt.Sprint(i)) }, func(dst []byte, i int) ([]byte, error) {
		if i == 2 {
			panic("item 2 cannot be made")
		}
		return fmt.Appendf(dst, "value %d", i), nil
	})
	t.Run("contract", func(t *testing.T) {
		streamtest.RunSource(t, func(*testing.T) streamtest.SourceUnderTest {
			return streamtest.SourceUnderTest{Source: source, Count: 5}
		})
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, startProducer(t, stream.ServerConfig{}, "s", source).connections(t).Dial)
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.start("s", l.store.Sink(l.table.handle))
		job := l.end("j", time.Minute)
		l.is(job, stream.Completed, "")
		if rows := l.aside("j"); len(rows) != 1 || rows[0].Seq != 2 || rows[0].Class != stream.ClassProducer || !strings.Contains(rows[0].Error, "item 2 cannot be made") || l.table.len() != 4 {
			t.Errorf("%d rows, in quarantine %+v; want 4 rows, and item 2 in quarantine", l.table.len(), rows)
		}
	})
}

// A handler without a transaction is tested without a database, and with what a worker makes of its panics and errors.
func TestTypedHandlersAtLeastOnce(t *testing.T) {
	var got []string
	outcome := streamtest.Handle(t, stream.EachProto(func(_ context.Context, b *stream.Batch, item stream.Typed[*wrapperspb.StringValue]) error {
		if item.Value.GetValue() == "panic" {
			panic("as told")
		}
		got = append(got, item.Value.GetValue())
		return nil
	}), stream.SliceOf([]*wrapperspb.StringValue{wrapperspb.String("a"), wrapperspb.String("panic"), wrapperspb.String("z")},
		func(m *wrapperspb.StringValue) []byte { return []byte(m.GetValue()) }, stream.ProtoValue))
	if outcome.Status.State != stream.Completed || len(outcome.Quarantine) != 1 || outcome.Quarantine[0].Class != stream.ClassPanic || got[len(got)-1] != "z" {
		t.Errorf("%+v, got %v", outcome, got)
	}
	bad := streamtest.Handle(t, stream.EachProto(func(context.Context, *stream.Batch, stream.Typed[*wrapperspb.StringValue]) error { return nil }),
		stream.Slice(stream.Record{Key: []byte("k"), Value: []byte{0xff}}))
	if len(bad.Quarantine) != 1 || !strings.Contains(bad.Quarantine[0].Error, "google.protobuf.StringValue") {
		t.Errorf("%+v", bad)
	}
	halted := streamtest.Handle(t, stream.EachJSON(func(context.Context, *stream.Batch, stream.Typed[json.Number]) error {
		return stream.Halt(errors.New("stop here"))
	}), stream.Slice(stream.Record{Key: []byte("k"), Value: []byte("1")}))
	if halted.Status.State != stream.Failed || halted.Err == nil || !strings.Contains(halted.Err.Error(), "stop here") {
		t.Errorf("%+v", halted)
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbered(3)...)).connections(t).Dial)
		if _, err := stream.Wait(t.Context(), l.store, "none"); !errors.Is(err, stream.ErrNotFound) {
			t.Errorf("a job that is not there: error %v", err)
		}
		l.submit(stream.Job{ID: "j", Stream: "s"})
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if status, err := stream.Wait(short, l.store, "j"); !errors.Is(err, context.DeadlineExceeded) || status.State != stream.Ready {
			t.Errorf("%v, error %v", status.State, err)
		}
		l.start("s", l.store.Sink(l.table.handle))
		if status, err := stream.Wait(t.Context(), l.store, "j"); err != nil || status.Progress.Records != 3 {
			t.Errorf("%+v, error %v", status, err)
		}
		l.submit(stream.Job{ID: "c", Stream: "other"})
		if _, err := l.store.Cancel(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		_, err := stream.Wait(t.Context(), l.store, "c")
		if ended, ok := errors.AsType[*stream.JobError](err); !ok || ended.Status.State != stream.Cancelled {
			t.Errorf("a cancelled job: error %v", err)
		}
	})
}

func TestReaderIterates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbered(30)...))
		open := func() *stream.Reader {
			r, err := stream.NewReader(stream.ReaderConfig{Dial: p.connections(t).Dial, Stream: "s", MaxRecords: 7, Logger: quiet}, stream.Checkpoint{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
			return r
		}
		n := uint64(0)
		for record, err := range open().Records(t.Context()) {
			if n++; err != nil || record.Seq != n {
				t.Fatalf("record %d, error %v, want %d", record.Seq, err, n)
			}
		}
		var last stream.Checkpoint
		for d, err := range open().Deliveries(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			last = d.After
		}
		if n != 30 || last.Seq != 30 || !last.Done {
			t.Errorf("%d records, and the last checkpoint is %+v", n, last)
		}
		r := open()
		for range r.Records(t.Context()) {
			break
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		errs := 0
		for _, err := range r.Records(ended) {
			if errs++; !errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) {
				t.Errorf("after the context's end: error %v", err)
			}
		}
		if errs != 1 {
			t.Errorf("%d errors after the context's end, want 1", errs)
		}
	})
}
