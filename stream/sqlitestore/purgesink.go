package sqlitestore

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// PurgeSink deletes offsets and quarantined records of a sink that is in another database than the job store ([NewSink]), as r says, and returns of how
// many jobs. Rows that handlers wrote stay.
func PurgeSink(ctx context.Context, db *sql.DB, r stream.SinkRetention) (int, error) {
	if err := checkSink(ctx, db); err != nil {
		return 0, err
	}
	return jobrule.PurgeSink(ctx, r, sinkTables{db})
}

type sinkTables struct{ db *sql.DB }

// oldOffset is the condition for an offset to be deleted: ?1 is the time before which it was written, ?2 that its stream need not be complete, ?3 that
// records which wait in quarantine go with it.
const oldOffset = `updated_at < ?1 and (?2 or done)
	and (?3 or not exists (select 1 from levada_quarantine q where q.job = levada_offset.job and q.state in ('waiting', 'replay')))`

func (t sinkTables) Old(ctx context.Context, r stream.SinkRetention, unfinished bool, after string, limit int) (jobs []string, err error) {
	return ids(t.db.QueryContext(ctx, `select job from levada_offset where `+oldOffset+` and job > ?4 order by job limit ?5`,
		time.Now().Add(-r.OlderThan).UnixMicro(), unfinished, r.WithQuarantine, after, limit))
}

func (t sinkTables) Delete(ctx context.Context, r stream.SinkRetention, unfinished bool, jobs []string) (n int, err error) {
	named, err := json.Marshal(jobs)
	if err != nil {
		return 0, err
	}
	tx, err := t.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() // after Commit it does nothing
	old, err := ids(tx.QueryContext(ctx, `delete from levada_offset where `+oldOffset+` and job in (select value from json_each(?4)) returning job`,
		time.Now().Add(-r.OlderThan).UnixMicro(), unfinished, r.WithQuarantine, string(named)))
	if err != nil {
		return 0, err
	}
	if named, err = json.Marshal(old); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, `delete from levada_quarantine where job in (select value from json_each(?1))`, string(named)); err != nil {
		return 0, err
	}
	return len(old), tx.Commit()
}

// ids reads a column of ids.
func ids(rows *sql.Rows, err error) (all []string, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	return all, rows.Err()
}
