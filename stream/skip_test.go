package stream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func threeRecords() stream.Source {
	return stream.Slice(stream.Record{Key: []byte("1"), Value: []byte("Ada")}, stream.Record{Key: []byte("2"), Value: []byte("Grace")}, stream.Record{Key: []byte("3"), Value: []byte("Joan")})
}

// TestSkipOfARecordThatIsNotInTheBatchHaltsTheJob: it was put into quarantine, and the record that the handler had left out was lost: counted
// as processed, and in no quarantine.
func TestSkipOfARecordThatIsNotInTheBatchHaltsTheJob(t *testing.T) {
	for name, foreign := range map[string]stream.Record{
		"another number":                     {Seq: 99, Key: []byte("2")},
		"another key under its number":       {Seq: 2, Key: []byte("two")},
		"no record":                          {},
		"the greatest number that there can": {Seq: 1<<64 - 1, Key: []byte("2")},
	} {
		t.Run(name, func(t *testing.T) {
			out := streamtest.Handle(t, func(_ context.Context, b *stream.Batch) error {
				b.Skip(foreign, stream.Skip(errors.New("no such user")))
				return nil
			}, threeRecords())
			if out.Status.State != stream.Failed || out.Status.Reason != stream.ReasonHalted || len(out.Quarantine) != 0 || out.Status.Progress.Records != 0 {
				t.Errorf("%+v, quarantine %v", out.Status, out.Quarantine)
			}
			for _, want := range []string{"Batch.Skip", fmt.Sprintf("record %d (key %q)", foreign.Seq, foreign.Key), "not in this batch", "Batch.Records", "no such user"} {
				if !strings.Contains(out.Status.LastError, want) {
					t.Errorf("the error does not say %q: %s", want, out.Status.LastError)
				}
			}
		})
	}
}

// TestSkipTwiceIsOnce: each call counted as a record, so the offset's number of bad records was not that of the quarantine, and a limit of bad
// records was reached too early.
func TestSkipTwiceIsOnce(t *testing.T) {
	out := streamtest.Handle(t, func(_ context.Context, b *stream.Batch) error {
		for range 2 {
			for _, r := range slices.Backward(b.Records) {
				if string(r.Key) != "2" {
					b.Skip(r, fmt.Errorf("record %s is refused", r.Key))
					b.Skip(r, errors.New("again"))
				}
			}
		}
		return nil
	}, threeRecords())
	if out.Err != nil || out.Status.Progress.Bad != 2 || len(out.Quarantine) != 2 {
		t.Fatalf("%+v, %v, quarantine %v", out.Status, out.Err, out.Quarantine)
	}
	for _, q := range out.Quarantine {
		if want := fmt.Sprintf("record %s is refused", q.Key); q.Error != want || len(q.History) != 1 {
			t.Errorf("quarantined with %q, want %q: the first reason", q.Error, want)
		}
	}
}

// TestSkipKeepsTheRecordThatCame: the quarantine is evidence, so what the handler did to its copies of the records does not change it.
func TestSkipKeepsTheRecordThatCame(t *testing.T) {
	out := streamtest.Handle(t, func(_ context.Context, b *stream.Batch) error {
		slices.Reverse(b.Records)
		for len(b.Records) > 0 { // a handler may consume the batch
			r := b.Records[0]
			b.Records = b.Records[1:]
			r.Value = []byte("changed")
			b.Skip(r, errors.New("refused"))
		}
		return nil
	}, threeRecords())
	if out.Err != nil || len(out.Quarantine) != 3 {
		t.Fatalf("%+v, %v, quarantine %v", out.Status, out.Err, out.Quarantine)
	}
	for i, want := range []string{"Ada", "Grace", "Joan"} {
		if got := string(out.Quarantine[i].Payload); got != want {
			t.Errorf("record %d is in quarantine with the value %q, want %q", i+1, got, want)
		}
	}
}
