package pgsource

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
)

// SnapshotTables makes the tables that snapshots are kept in. A source makes them itself if it may; else run this first.
const SnapshotTables = `
create table if not exists levada_snapshot (
	id uuid primary key default gen_random_uuid(),
	stream text not null,
	job text not null,
	query text not null,
	rows bigint not null default 0,
	created_at timestamptz not null default now(),
	used_at timestamptz not null default now(),
	keep_for interval,
	unique (stream, job)
);
create table if not exists levada_snapshot_row (
	snapshot uuid not null references levada_snapshot on delete cascade,
	n bigint not null,
	value bytea,
	primary key (snapshot, n)
);`

// SnapshotSource is a stream.Source that copies the query's result, as it is at one moment, when a job is first read, and serves the job
// from that copy from then on, whatever becomes of the rows or of the producer. The copy takes as much room in the database as the
// records do; it is gone after Query.KeepFor without use, and after Drop.
//
// The key of a record is its number in the copy, 8 bytes, big endian, and the copy's id. A job whose copy is gone gets a
// [stream.PositionGoneError].
type SnapshotSource struct {
	pool  *connections
	q     Query
	ready atomic.Bool // the tables are there
}

// Snapshot makes a SnapshotSource. Of the query, Horizon, Static, Follow, Notify, Encode and Generation have no meaning here and must not
// be set. Key may be left out: the records then come in the order of the SQL.
func Snapshot(pool *pgxpool.Pool, q Query) (*SnapshotSource, error) {
	q = q.withDefaults()
	err := q.check()
	if q.Horizon != "" || q.Static || q.Follow || q.Notify != "" || q.Encode != nil || q.Generation != nil || q.SurvivesPromotion {
		err = errors.New("Horizon, Static, Follow, Notify, Encode, Generation and SurvivesPromotion are for Keyset only")
	}
	if err != nil {
		return nil, fmt.Errorf("pgsource.Snapshot: %w", err)
	}
	return &SnapshotSource{pool: &connections{Pool: pool}, q: q}, nil
}

// Schema implements [stream.Schema].
func (s *SnapshotSource) Schema(stream.Query) string { return "snapshot " + s.q.schema() }

// query is what a copy was made of.
func (s *SnapshotSource) query(q stream.Query) string {
	return fmt.Sprintf("%s params=%q", s.Schema(q), bytes.TrimSpace(q.Params))
}

// tables makes the tables unless they are there.
func (s *SnapshotSource) tables(ctx context.Context) error {
	if s.ready.Load() {
		return nil
	}
	if err := s.pool.check(ctx); err != nil {
		return err
	}
	var there bool
	if err := s.pool.QueryRow(ctx, "select to_regclass('levada_snapshot_row') is not null").Scan(&there); err != nil {
		return err
	}
	if !there {
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			// Two that create the same table at once may both find it missing.
			if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended('levada_snapshot', 0))"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, SnapshotTables)
			return err
		})
		if err != nil {
			return fmt.Errorf("making the tables for snapshots (pgsource.SnapshotTables can be run by a role that may): %w", err)
		}
	}
	s.ready.Store(true)
	return nil
}

// header is a row of levada_snapshot.
type header struct {
	id    [16]byte
	query string
	rows  int64
}

// find returns the job's copy, and counts it as used.
func (s *SnapshotSource) find(ctx context.Context, q stream.Query) (h header, found bool, err error) {
	err = s.pool.QueryRow(ctx, "update levada_snapshot set used_at = now() where stream = $1 and job = $2 returning id, query, rows", q.Stream, q.Job).
		Scan(&h.id, &h.query, &h.rows)
	if errors.Is(err, pgx.ErrNoRows) {
		return h, false, nil
	}
	return h, err == nil, err
}

func (s *SnapshotSource) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	if q.Job == "" {
		return nil, stream.Halt(errors.New("a snapshot belongs to a job, and the reader names none"))
	}
	if _, err := s.q.bind(q.Params); err != nil {
		return nil, stream.Halt(err)
	}
	if err := s.tables(ctx); err != nil {
		return nil, err
	}
	h, found, err := s.find(ctx, q)
	if err != nil {
		return nil, err
	}
	q.After, q.Params = bytes.Clone(q.After), bytes.Clone(q.Params)
	c := &snapshotCursor{s: s, q: q, h: h, made: found, used: time.Now(), limit: min(s.q.Page, firstPage)}
	if len(q.After) == 0 {
		c.made = found && h.query == s.query(q)
		return c, nil
	}
	if len(q.After) != snapshotKey {
		return nil, fmt.Errorf("%w: a key of a snapshot has %d bytes, this one %d", stream.ErrQueryChanged, snapshotKey, len(q.After))
	}
	c.n = int64(binary.BigEndian.Uint64(q.After))
	switch {
	case !found || !bytes.Equal(h.id[:], q.After[8:]):
		return nil, c.gone()
	case h.query != s.query(q):
		return nil, fmt.Errorf("%w: the job's snapshot was made of %s", stream.ErrQueryChanged, h.query)
	case c.n < 1 || c.n > h.rows:
		return nil, fmt.Errorf("%w: record %d of a snapshot of %d", stream.ErrBadToken, c.n, h.rows)
	}
	return c, nil
}

// Size implements [stream.Sizer]. It waits until the snapshot has been made.
func (s *SnapshotSource) Size(ctx context.Context, q stream.Query) (uint64, error) {
	if err := s.tables(ctx); err != nil {
		return 0, err
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		h, found, err := s.find(ctx, q)
		if err != nil {
			return 0, err
		}
		if found && h.query == s.query(q) {
			return uint64(h.rows), nil
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// Drop removes the job's snapshot, if there is one.
func (s *SnapshotSource) Drop(ctx context.Context, job string) error {
	if err := s.tables(ctx); err != nil {
		return err
	}
	_, err := s.pool.Exec(ctx, "delete from levada_snapshot where job = $1", job)
	return err
}

// Expire removes all snapshots, of whatever source, that were not used for as long as they are to be kept, and returns how many there
// were. It is also done whenever a snapshot is made.
func (s *SnapshotSource) Expire(ctx context.Context) (int, error) {
	if err := s.tables(ctx); err != nil {
		return 0, err
	}
	tag, err := s.pool.Exec(ctx, "delete from levada_snapshot where used_at + keep_for < now()")
	return int(tag.RowsAffected()), err
}

// snapshotKey is the size of a key: the record's number and the id of the copy.
const snapshotKey = 8 + 16

// snapshotCursor reads a job's copy. The copy never changes, so the number of a row is its position.
type snapshotCursor struct {
	s    *SnapshotSource
	q    stream.Query
	h    header
	made bool // h is the job's copy; otherwise Next makes one

	// n is the number of the last record that Next returned, 0 before the first. Invariant: n <= h.rows once made.
	n int64
	// rows are the values of the page, and at is how many of them Next has returned: rows[at] has the number n+1. They point into memory, which the
	// next page writes over.
	rows   [][]byte
	at     int
	memory []byte
	limit  int       // rows of the next page
	used   time.Time // when the use of the copy was last stored in the database, which keeps it from expiring
	// key is the last key: the number, big endian, and then the id of the copy, which a position in another copy does not have.
	key [snapshotKey]byte
	err error // returned by Next from now on
}

func (c *snapshotCursor) gone() error {
	return fmt.Errorf("the snapshot of job %q, made when the job was first read, is not kept any more; submit a new job: %w", c.q.Job, &stream.PositionGoneError{})
}

// Next makes the copy if it is the first. That may take long, and a reader is kept waiting here better than in Open.
func (c *snapshotCursor) Next(ctx context.Context) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	if c.at == len(c.rows) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if err := c.more(ctx); err != nil {
			if ctx.Err() == nil {
				c.err = err
			}
			return nil, err
		}
	}
	c.at++
	c.n++
	binary.BigEndian.PutUint64(c.key[:], uint64(c.n))
	copy(c.key[8:], c.h.id[:])
	return c.key[:], nil
}

func (c *snapshotCursor) Value(dst []byte) ([]byte, error) {
	value := c.rows[c.at-1]
	if value == nil {
		return dst, stream.Skip(fmt.Errorf("column %q is NULL in record %d of the snapshot", c.s.q.Value, c.n))
	}
	return append(dst, value...), nil
}

func (c *snapshotCursor) Close() error { return nil }

// more gets the next page.
func (c *snapshotCursor) more(ctx context.Context) (err error) {
	if !c.made {
		if c.h, err = c.s.take(ctx, c.q); err != nil {
			return err
		}
		c.made = true
	}
	if c.n == c.h.rows {
		return io.EOF
	}
	if now := time.Now(); now.Sub(c.used) > min(time.Minute, max(c.s.q.KeepFor, 0)/4) {
		if _, err := c.s.pool.Exec(ctx, "update levada_snapshot set used_at = now() where id = $1", c.h.id); err != nil {
			return err
		}
		c.used = now
	}
	return c.page(ctx)
}

// page reads the next rows of the copy, which are numbered without gaps: one that is missing was dropped, with all others.
func (c *snapshotCursor) page(ctx context.Context) error {
	rows, memory := c.rows[:0], c.memory[:0]
	result, err := c.s.pool.Query(ctx, "select n, value from levada_snapshot_row where snapshot = $1 and n > $2 order by n limit $3", pgx.QueryResultFormats{pgtype.BinaryFormatCode}, c.h.id, c.n, c.limit)
	if err != nil {
		return err
	}
	full := false
	var failed error
	for result.Next() {
		if failed != nil || full {
			continue
		}
		raw := result.RawValues()
		if n := int64(binary.BigEndian.Uint64(raw[0])); n != c.n+int64(len(rows))+1 {
			failed = c.gone()
			continue
		}
		if raw[1] == nil {
			rows = append(rows, nil)
			continue
		}
		start := len(memory)
		memory = append(memory, raw[1]...)
		rows = append(rows, memory[start:len(memory):len(memory)])
		full = len(memory) > 2*c.s.q.PageBytes
	}
	if err := errors.Join(result.Err(), failed); err != nil {
		return err
	}
	if len(rows) == 0 {
		return c.gone()
	}
	c.limit = min(c.s.q.Page, max(firstPage/4, c.s.q.PageBytes/(len(memory)/len(rows)+1)))
	c.rows, c.memory, c.at = rows, memory, 0
	return nil
}

// take makes the job's copy, or returns the one that another has just made. The header's unique index makes all others wait for the first.
func (s *SnapshotSource) take(ctx context.Context, q stream.Query) (header, error) {
	if _, err := s.Expire(ctx); err != nil {
		return header{}, fmt.Errorf("removing old snapshots: %w", err)
	}
	for {
		h, err := s.copy(ctx, q)
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pg.Code != "23505" && pg.Code != "40001" && pg.Code != "40P01" {
			return h, err
		}
		h, found, err := s.find(ctx, q)
		if err != nil || found && h.query == s.query(q) {
			return h, err
		}
	}
}

func (s *SnapshotSource) copy(ctx context.Context, q stream.Query) (h header, err error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return h, err
	}
	defer conn.Release()
	b, err := s.q.describe(ctx, conn, q.Params)
	if err != nil {
		return h, err
	}
	if err := b.refuseNulls(ctx, conn); err != nil {
		return h, err
	}
	h.query = s.query(q)
	var keep *time.Duration // NULL: until it is dropped
	if s.q.KeepFor >= 0 {
		keep = &s.q.KeepFor
	}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "delete from levada_snapshot where stream = $1 and job = $2 and query <> $3", q.Stream, q.Job, h.query); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "insert into levada_snapshot (stream, job, query, keep_for) values ($1, $2, $3, $4) returning id", q.Stream, q.Job, h.query, keep).Scan(&h.id); err != nil {
			return err
		}
		sql, values, formats := b.copyStatement(h.id)
		r := conn.Conn().PgConn().ExecParams(ctx, sql, values, nil, formats, nil).Read()
		if r.Err != nil {
			return permanent(fmt.Errorf("copying the query's result: %w", r.Err))
		}
		h.rows = r.CommandTag.RowsAffected()
		_, err := tx.Exec(ctx, "update levada_snapshot set rows = $2, used_at = clock_timestamp() where id = $1", h.id, h.rows)
		return err
	})
	return h, err
}

func (b *bound) copyStatement(id [16]byte) (sql string, values [][]byte, formats []int16) {
	values = append(append(values, b.params...), id[:])
	formats = append(make([]int16, len(b.params)), pgtype.BinaryFormatCode)
	value := "convert_to(row_to_json(q.*)::text, 'UTF8')"
	if b.Value != "" {
		value = "q." + pgx.Identifier{b.Value}.Sanitize()
		if f, _ := b.field(b.Value); f.DataTypeOID != pgtype.ByteaOID {
			value = "convert_to(" + value + "::text, 'UTF8')"
		}
	}
	order := ""
	if len(b.keys) > 0 {
		var columns []string
		for _, k := range b.keys {
			columns = append(columns, k.sql())
		}
		order = "order by " + strings.Join(columns, ", ")
	}
	return fmt.Sprintf("insert into levada_snapshot_row (snapshot, n, value) select $%d::uuid, row_number() over (%s), %s from %s", len(values), order, value, b.from()), values, formats
}
