package sqlitestore

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// Purge deletes jobs that have ended, with their offsets and quarantined records in this file, in one transaction, and returns how many jobs it
// has deleted. The user's own rows stay.
func (s *Store) Purge(ctx context.Context, r stream.Retention) (n int, err error) {
	if r, err = jobrule.Retention(r); err != nil {
		return 0, err
	}
	states, err := json.Marshal(r.States)
	if err != nil {
		return 0, fmt.Errorf("purge: %w", err)
	}
	err = s.transact(ctx, func(tx *sql.Tx, now time.Time) error {
		rows, err := tx.QueryContext(ctx, `select id from levada_job j where state in (select value from json_each(?1)) and finished_at < ?2
			and (?3 or not exists (select 1 from levada_quarantine q where q.job = j.id and q.state in ('waiting', 'replay')))
			order by finished_at limit ?4`, string(states), now.Add(-r.OlderThan).UnixMicro(), r.WithQuarantine, r.Max)
		if err != nil {
			return err
		}
		var old []string
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				_ = rows.Close()
				return err
			}
			old = append(old, id)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for _, id := range old {
			for _, statement := range []string{`delete from levada_quarantine where job = ?`, `delete from levada_offset where job = ?`, `delete from levada_job where id = ?`} {
				if _, err := tx.ExecContext(ctx, statement, id); err != nil {
					return err
				}
			}
		}
		n = len(old)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("purge: %w", err)
	}
	return n, nil
}
