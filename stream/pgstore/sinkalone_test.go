package pgstore

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func TestSinkAlone(t *testing.T) {
	streamtest.RunSinkAlone(t, func(t *testing.T) streamtest.SinkAlone {
		pool := connect(t, testserver.Postgres(t))
		schema := WithSchema("copies")
		list := func(t *testing.T, table string) (ids []string) {
			t.Helper()
			if err := pool.QueryRow(t.Context(), `select array_agg(distinct job order by job) from copies.`+table).Scan(&ids); err != nil {
				t.Fatal(err)
			}
			return ids
		}
		return streamtest.SinkAlone{
			Migrate: func(ctx context.Context) error { return MigrateSink(ctx, pool, schema) },
			Version: func(ctx context.Context) (int64, int64, error) {
				v, err := SinkVersion(ctx, pool, schema)
				return v.Stored, v.Known, err
			},
			Open: func(ctx context.Context) (stream.ReplaySink, error) {
				return NewSink(ctx, pool, nil, WithoutMigrate(), schema)
			},
			Purge: func(ctx context.Context, r stream.SinkRetention) (int, error) { return PurgeSink(ctx, pool, r, schema) },
			Jobs:  open(t, connect(t, testserver.Postgres(t))),
			Age: func(t *testing.T, by time.Duration, except ...string) {
				mustExec(t, pool, `update copies.levada_offset set updated_at = updated_at - $1::interval where not job = any($2)`, by, append([]string{}, except...))
			},
			Offsets:    func(t *testing.T) []string { return list(t, "levada_offset") },
			Quarantine: func(t *testing.T) []string { return list(t, "levada_quarantine") },
		}
	})
}

// A sink alone has its tables in its schema, no others, and not in another schema.
func TestSinkAloneKeepsToItsSchema(t *testing.T) {
	ctx := t.Context()
	pool := connect(t, testserver.Postgres(t))
	if err := MigrateSink(ctx, pool, WithSchema("copies")); err != nil {
		t.Fatal(err)
	}
	if got := tablesIn(t, pool); slices.Contains(got, "copies.levada_job") || !slices.Contains(got, "copies.levada_offset") {
		t.Errorf("tables %v, want those of a sink alone", got)
	}
	if _, err := NewSink(ctx, pool, nil, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) {
		t.Errorf("a sink in another schema: error %v, want ErrOlder", err)
	}
}
