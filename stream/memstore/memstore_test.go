package memstore_test

import (
	"cmp"
	"context"
	"slices"
	"testing"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
	"github.com/levada-io/levada/stream/streamtest"
)

func TestStore(t *testing.T) {
	streamtest.RunStore(t, func(*testing.T) streamtest.StoreUnderTest {
		s := memstore.New()
		return streamtest.StoreUnderTest{Store: s, More: []stream.Store{s}}
	})
}

func TestSink(t *testing.T) {
	streamtest.RunSink(t, func(_ *testing.T, handler streamtest.SinkHandler) streamtest.SinkUnderTest {
		type row struct {
			job string
			stream.Record
		}
		var table []row
		s := memstore.New()
		sink := s.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			var rows []row
			err := handler(ctx, b, func(r stream.Record) error {
				r.Key, r.Value = slices.Clone(r.Key), slices.Clone(r.Value)
				rows = append(rows, row{b.Job.ID, r})
				return nil
			})
			return func() { table = append(table, rows...) }, err
		})
		return streamtest.SinkUnderTest{Sink: sink, More: []stream.Sink{sink}, Store: s, Effects: func(_ *testing.T, job string) (effects []stream.Record) {
			for _, r := range table {
				if r.job == job {
					effects = append(effects, r.Record)
				}
			}
			slices.SortStableFunc(effects, func(a, b stream.Record) int { return cmp.Compare(a.Seq, b.Seq) })
			return effects
		}}
	})
}
