package pgstore

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// Purge deletes jobs that have ended, with their offsets and quarantined records in this database, in one transaction, and returns how many jobs
// it has deleted. The user's own rows stay. Offsets in another database ([NewSink]) stay as well: [PurgeSink]
// deletes those.
func (s *Store) Purge(ctx context.Context, r stream.Retention) (n int, err error) {
	if r, err = jobrule.Retention(r); err != nil {
		return 0, err
	}
	states := make([]string, 0, len(r.States))
	for _, state := range r.States {
		states = append(states, string(state))
	}
	_, err = once(ctx, s.pool, `with old as (
			select id from levada_job j where state = any ($1::text[]) and finished_at < now() - `+interval(`$2`)+`
			and ($3::boolean or not exists (select from levada_quarantine q where q.job = j.id and q.state in ('waiting', 'replay')))
			order by finished_at limit $4::bigint for update skip locked),
		quarantined as (delete from levada_quarantine where job in (select id from old)),
		offsets as (delete from levada_offset where job in (select id from old)),
		gone as (delete from levada_job where id in (select id from old) returning 1)
		select count(*) from gone`, func(row pgx.Row) error { return row.Scan(&n) }, states, r.OlderThan.Microseconds(), r.WithQuarantine, r.Max)
	if err != nil {
		return 0, fmt.Errorf("purge: %w", err)
	}
	return n, nil
}
