package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// PurgeSink deletes offsets and quarantined records of a sink that is in another database than the job store ([NewSink]), as r says, and returns of how
// many jobs. It takes [WithSchema], and creates no tables: [stream.ErrOlder] if they are missing. Rows that handlers wrote stay.
func PurgeSink(ctx context.Context, pool *pgxpool.Pool, r stream.SinkRetention, opts ...Option) (int, error) {
	t, err := tablesOf(ctx, pool, opts)
	if err != nil {
		return 0, err
	}
	if err := bringUp(ctx, t, sinkSet, false); err != nil {
		return 0, err
	}
	return jobrule.PurgeSink(ctx, r, sinkTables{t})
}

type sinkTables struct{ *tables }

// oldOffset is the condition for an offset to be deleted: $1 is its age in microseconds, $2 that its stream need not be complete, $3 that records which
// wait in quarantine go with it.
var oldOffset = `o.updated_at < now() - ` + interval(`$1`) + ` and ($2::boolean or o.done)
	and ($3::boolean or not exists (select from levada_quarantine q where q.job = o.job and q.state in ('waiting', 'replay')))`

func (t sinkTables) Old(ctx context.Context, r stream.SinkRetention, unfinished bool, after string, limit int) (jobs []string, err error) {
	_, err = once(ctx, t.tables, `select o.job from levada_offset o where `+oldOffset+` and o.job > $4 order by o.job limit $5::bigint`, func(row pgx.Row) error {
		var id string
		err := row.Scan(&id)
		jobs = append(jobs, id)
		return err
	}, r.OlderThan.Microseconds(), unfinished, r.WithQuarantine, after, limit)
	return jobs, err
}

func (t sinkTables) Delete(ctx context.Context, r stream.SinkRetention, unfinished bool, jobs []string) (n int, err error) {
	_, err = once(ctx, t.tables, `with old as (delete from levada_offset o where `+oldOffset+` and o.job = any ($4::text[]) returning o.job),
		quarantined as (delete from levada_quarantine where job in (select job from old))
		select count(*) from old`, func(row pgx.Row) error { return row.Scan(&n) }, r.OlderThan.Microseconds(), unfinished, r.WithQuarantine, jobs)
	return n, err
}
