package streamtable

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
)

// Postgres is a table in a Postgres database.
type Postgres struct {
	pool *pgxpool.Pool
	name string
}

// CreatePostgres makes the table unless it is there. The pool stays open at Close.
func CreatePostgres(ctx context.Context, pool *pgxpool.Pool, name string) (*Postgres, error) {
	if err := checkName(name, true); err != nil {
		return nil, err
	}
	t := &Postgres{pool: pool, name: name}
	var there bool
	err := pool.QueryRow(ctx, `select to_regclass($1) is not null`, quote(name)).Scan(&there)
	if err == nil && !there {
		// Two workers may start at once, and Postgres does not make "if not exists" wait for the other: one of them at a time.
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended($1, 0))`, "levada table "+name); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `create table if not exists `+quote(name)+` (job text not null, seq bigint not null, key bytea not null, value bytea not null)`)
			return err
		})
	}
	if err == nil {
		err = t.check(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("make table %s: %w", name, err)
	}
	return t, nil
}

// OpenPostgres opens a table that is there, or returns an error that wraps ErrNoTable. The pool stays open at Close.
func OpenPostgres(ctx context.Context, pool *pgxpool.Pool, name string) (*Postgres, error) {
	if err := checkName(name, true); err != nil {
		return nil, err
	}
	t := &Postgres{pool: pool, name: name}
	if err := t.check(ctx); err != nil {
		return nil, fmt.Errorf("table %s: %w", name, err)
	}
	return t, nil
}

func (t *Postgres) check(ctx context.Context) error {
	rows, err := t.pool.Query(ctx, `select attname::text from pg_attribute where attrelid = to_regclass($1) and attnum > 0 and not attisdropped`, quote(t.name))
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return ErrNoTable
	}
	return checkColumns(t.name, found)
}

// Insert is a handler for pgstore: it copies the batch in, in one go.
func (t *Postgres) Insert(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
	rows := &copyRows{batch: b, next: -1, row: []any{b.Job.ID, nil, nil, nil}}
	_, err := tx.CopyFrom(ctx, pgx.Identifier(strings.SplitN(t.name, ".", 2)), columns, rows)
	return err
}

// copyRows hands the records of a batch to COPY without a copy of its own.
type copyRows struct {
	batch *stream.Batch
	next  int
	row   []any
}

func (c *copyRows) Next() bool {
	c.next++
	return c.next < len(c.batch.Records)
}

func (c *copyRows) Values() ([]any, error) {
	r := &c.batch.Records[c.next]
	c.row[1], c.row[2], c.row[3] = int64(r.Seq), r.Key, notNull(r.Value)
	return c.row, nil
}

func (c *copyRows) Err() error { return nil }

// Name implements Reader.
func (t *Postgres) Name() string { return t.name }

// Rows implements Reader.
func (t *Postgres) Rows(ctx context.Context, job string, ordered bool) iter.Seq2[stream.Record, error] {
	query := `select seq, key, value from ` + quote(t.name) + ` where job = $1`
	if ordered {
		query += ` order by seq`
	}
	return func(yield func(stream.Record, error) bool) {
		fail := func(err error) { yield(stream.Record{}, fmt.Errorf("read table %s: %w", t.name, err)) }
		rows, err := t.pool.Query(ctx, query, job)
		if err != nil {
			fail(err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			var seq int64
			var r stream.Record
			if err := rows.Scan(&seq, &r.Key, &r.Value); err != nil {
				fail(err)
				return
			}
			r.Seq = uint64(seq)
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}

// Close implements Reader.
func (t *Postgres) Close() error { return nil }
