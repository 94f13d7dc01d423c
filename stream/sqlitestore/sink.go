package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
	"github.com/levada-io/levada/stream/internal/jobsql"
)

// Handler stores the effects of a batch's records in the transaction, which the sink ends: a handler must neither commit it nor roll it
// back. Errors by which SQLite refuses a value (constraints, mismatches, sizes) are taken as marked with [stream.Skip], those that
// depend on other rows (foreign keys, uniqueness) with [stream.Later], unless the handler has marked them itself.
type Handler func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error

// sink keeps effects, checkpoint and quarantine in one database.
type sink struct {
	write, read *sql.DB // of the store, or of a database of the sink's own
	now         func() time.Time
	handler     Handler // nil: checkpoints only
	statements  *statements
	store       *Store // nil when the jobs are in another database: then no lease is checked or renewed
}

// Reserve implements [stream.ReservingSink]: commits wait for each other here, outside the handler's time.
func (s *sink) Reserve(ctx context.Context) (context.Context, func(), error) {
	if s.store == nil {
		return ctx, func() {}, nil
	}
	select {
	case s.store.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	s.store.letShortGo(ctx)
	return ctx, func() { <-s.store.turn }, nil
}

// Capacity implements [stream.ReservingSink]: SQLite has one writer, which is not configurable.
func (s *sink) Capacity() int { return 0 }

// hold has renewals know that a transaction of ours has the right to write, until it is called.
func (s *sink) hold() (done func()) {
	if s.store == nil {
		return func() {}
	}
	return s.store.hold()
}

// waits has commits let a short transaction go first, until it has begun.
func (s *sink) waits() (begun func()) {
	if s.store == nil {
		return func() {}
	}
	return s.store.waits()
}

// statements are those of each commit.
type statements struct {
	lock, offset *sql.Stmt
	job          *sql.Stmt // the check of the lease, and its renewal; nil when the jobs are in another database
}

func prepare(ctx context.Context, db *sql.DB, withJobs bool) (_ *statements, err error) {
	s := &statements{}
	one := func(text string) (stmt *sql.Stmt) {
		if err == nil {
			stmt, err = db.PrepareContext(ctx, text)
		}
		return stmt
	}
	// It writes nothing, but takes the right to write before the handler reads: later the database could have changed behind its back.
	s.lock = one(`delete from levada_offset where false`)
	s.offset = one(`update levada_offset set version = ?, seq = ?, token = ?, digest = ?, bytes = ?, bad = ?, done = ?, updated_at = ?
		where job = ? and epoch = ? and seq = ? and token = ? and digest = ? and bytes = ? and bad = ? and done = ?`)
	if withJobs {
		s.job = one(`update levada_job set lease_until = max(lease_until, ?1 + lease_ttl), records = ?2, bytes = ?3, bad = ?4, updated_at = ?1
			where id = ?5 and epoch = ?6 and state = 'running'`)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the sink's statements: %w", explain(err)), s.close())
	}
	return s, nil
}

func (s *statements) close() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{s.lock, s.offset, s.job} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	return errors.Join(errs...)
}

// Sink returns a sink in the store's own file. Each commit also checks, in its transaction, that the job is still running in the
// lease's epoch, and renews the lease: a job that was cancelled or paused commits nothing more. Without a handler it keeps
// checkpoints only, for effects that are elsewhere: of those it also accounts for what had happened by then ([stream.Batch.EffectsOutside]).
func (s *Store) Sink(handler Handler) stream.ReplaySink {
	return &sink{write: s.write, read: s.read, now: s.now, handler: handler, statements: s.sinks, store: s}
}

// NewSink returns a sink in another database than the store's, and makes its tables there, unless told [WithoutMigrate]: then [MigrateSink] does; other
// options are for stores. Its offsets and quarantined records stay until [PurgeSink] deletes them. db is to be used with synchronous=FULL, so that a reported commit outlasts a loss of power, and with a busy_timeout if others write to the file. It must
// stay open for as long as the sink is used; a handler must not use it besides its transaction if db has only one connection.
func NewSink(ctx context.Context, db *sql.DB, handler Handler, opts ...Option) (stream.ReplaySink, error) {
	var o Store
	for _, opt := range opts {
		opt(&o)
	}
	bringUp := MigrateSink
	if o.keep {
		bringUp = checkSink
	}
	if err := bringUp(ctx, db); err != nil {
		return nil, err
	}
	statements, err := prepare(ctx, db, false)
	if err != nil {
		return nil, err
	}
	return &sink{write: db, read: db, now: time.Now, handler: handler, statements: statements}, nil
}

// begin starts a transaction that has the right to write.
func (s *sink) begin(ctx context.Context) (*sql.Tx, error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return nil, unbegun(ctx, err)
	}
	if s.statements.job == nil { // not our own connection, which begins with that right
		if _, err := tx.StmtContext(ctx, s.statements.lock).ExecContext(ctx); err != nil {
			return nil, errors.Join(unbegun(ctx, err), tx.Rollback())
		}
	}
	return tx, nil
}

// load reads the stored checkpoint; ok is false if there is none.
func load(ctx context.Context, q querier, job string) (o jobsql.Offset, ok bool, err error) {
	err = q.QueryRowContext(ctx, `select `+jobsql.OffsetColumns+` from levada_offset where job = ?`, job).Scan(o.Dest()...)
	if errors.Is(err, sql.ErrNoRows) {
		return o, false, nil
	}
	if err == nil {
		err = o.Check()
	}
	if err != nil {
		return o, false, fmt.Errorf("job %s: %w", job, err)
	}
	return o, true, nil
}

// Fence implements [stream.Sink].
func (s *sink) Fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	c, err := s.fence(ctx, l)
	if err != nil {
		return stream.Checkpoint{}, fmt.Errorf("fence: %w", outage(err))
	}
	return c, nil
}

func (s *sink) fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	begun := s.waits()
	tx, err := s.begin(ctx)
	begun()
	if err != nil {
		return stream.Checkpoint{}, err
	}
	defer s.hold()()
	defer tx.Rollback() // after Commit it does nothing
	c, ok, err := load(ctx, tx, l.Job)
	switch {
	case err != nil:
		return stream.Checkpoint{}, err
	case c.Version > stream.CheckpointVersion:
		return stream.Checkpoint{}, jobrule.Newer(l.Job, c.Version)
	case ok && c.Epoch > l.Epoch:
		return stream.Checkpoint{}, jobrule.Fenced(l, "epoch %d was fenced already", c.Epoch)
	case ok && c.Epoch == l.Epoch:
		return c.Checkpoint, nil // since we have the right to write, no commit is under way
	}
	_, err = tx.ExecContext(ctx, `insert into levada_offset (job, version, epoch, token, digest, updated_at) values (?, ?, ?, x'', zeroblob(16), ?)
		on conflict (job) do update set epoch = excluded.epoch, updated_at = excluded.updated_at`, l.Job, stream.CheckpointVersion, int64(l.Epoch), s.now().UnixMicro())
	if err != nil {
		return stream.Checkpoint{}, err
	}
	return c.Checkpoint, tx.Commit()
}

// check returns the error for a lease that may not commit in this transaction, or for a checkpoint that is not the stored one.
// Of effects outside it does not check that the lease is the job's.
func (s *sink) check(ctx context.Context, tx *sql.Tx, l stream.Lease, prev *stream.Checkpoint, outside bool) error {
	c, ok, err := load(ctx, tx, l.Job)
	if err != nil {
		return err
	}
	if err := jobsql.MayCommit(l, c, ok); err != nil {
		return err
	}
	if s.statements.job != nil {
		st, err := get(ctx, tx, l.Job)
		if err != nil && !errors.Is(err, stream.ErrNotFound) {
			return err
		}
		if err != nil || !outside && (st.Epoch != l.Epoch || st.State != stream.Running) {
			return fenced(ctx, tx, l)
		}
	}
	if prev != nil && !jobsql.Same(c.Checkpoint, *prev) {
		return jobrule.Conflict(l, prev.Seq, c.Seq)
	}
	return nil
}

// Commit implements [stream.Sink].
func (s *sink) Commit(ctx context.Context, c *stream.Commit) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return fmt.Errorf("commit of job %s: %w", c.Lease.Job, err)
	}
	defer s.hold()()
	defer tx.Rollback() // also when the handler panics; after Commit it does nothing
	if err := s.handle(ctx, tx, c.Batch); err != nil {
		// A stale owner meets the rows of its successor: that is not the records' fault.
		if fault := s.check(ctx, tx, c.Lease, &c.Prev, false); jobsql.Refuses(fault) {
			return fmt.Errorf("commit: %w", fault)
		}
		return err
	}
	next, quarantine, err := c.Result()
	if err == nil {
		err = jobrule.Commit(c.Lease, c.Prev, next)
	}
	if err != nil {
		return err
	}
	now := time.Now()
	owned, err := s.advance(ctx, tx, c, next, quarantine)
	if err != nil {
		return fmt.Errorf("commit of job %s: %w", c.Lease.Job, outage(ended(ctx, err)))
	}
	switch {
	case !owned:
		c.LeaseLost()
	case s.store != nil:
		c.LeaseRenewed(now)
	}
	return s.commit(tx, c.Lease.Job)
}

// handle calls the handler.
func (s *sink) handle(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
	b.Reset()
	if s.handler == nil || len(b.Records) == 0 {
		return nil
	}
	if err := s.handler(ctx, tx, b); err != nil {
		return fmt.Errorf("job %s, records %d to %d: %w", b.Job.ID, b.Records[0].Seq, b.Records[len(b.Records)-1].Seq, classify(err))
	}
	return nil
}

// ended names the cause when the handler has ended the sink's transaction: what it committed is there without the checkpoint.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil { // which ends the transaction too
		return errors.Join(ctx.Err(), err)
	}
	if errors.Is(err, sql.ErrTxDone) {
		return stream.Halt(fmt.Errorf("the handler must leave the end of the transaction to the sink: remove its Commit or Rollback: %w", err))
	}
	return err
}

// advance writes what goes with the effects. The fence comes last. owned is false if the lease is lost, and the effects have happened outside.
func (s *sink) advance(ctx context.Context, tx *sql.Tx, c *stream.Commit, next stream.Checkpoint, quarantine []stream.Quarantined) (owned bool, err error) {
	now := s.now().UnixMicro()
	for _, q := range quarantine {
		_, err := tx.ExecContext(ctx, `insert into levada_quarantine (job, seq, key, payload, error, class, attempts, history, state, first_seen) values (?, ?, ?, ?, ?, ?, ?, ?, 'waiting', ?)
			on conflict (job, seq) do update set key = excluded.key, payload = excluded.payload, error = excluded.error, class = excluded.class, attempts = excluded.attempts, history = excluded.history, state = excluded.state`,
			c.Lease.Job, int64(q.Seq), jobsql.NotNull(q.Key), q.Payload, jobrule.Text(q.Error), string(q.Class), q.Attempts, jobrule.HistoryText(q.History), now)
		if err != nil {
			return false, err
		}
	}
	owned = true
	if s.statements.job != nil {
		done, err := tx.StmtContext(ctx, s.statements.job).ExecContext(ctx, now, int64(next.Seq), int64(next.Bytes), int64(next.Bad), c.Lease.Job, int64(c.Lease.Epoch))
		if err != nil {
			return false, err
		}
		n, err := done.RowsAffected()
		owned = n == 1
		if err != nil || !owned && !c.Batch.EffectsOutside() {
			return false, errors.Join(err, s.check(ctx, tx, c.Lease, &c.Prev, false))
		}
		if !owned {
			if err := s.noteFinished(ctx, tx, c.Lease, next); err != nil {
				return false, err
			}
		}
	}
	prev := c.Prev
	done, err := tx.StmtContext(ctx, s.statements.offset).ExecContext(ctx,
		stream.CheckpointVersion, int64(next.Seq), jobsql.NotNull(next.Token), next.Digest[:], int64(next.Bytes), int64(next.Bad), next.Done, now,
		c.Lease.Job, int64(c.Lease.Epoch), int64(prev.Seq), jobsql.NotNull(prev.Token), prev.Digest[:], int64(prev.Bytes), int64(prev.Bad), prev.Done)
	if err != nil {
		return false, err
	}
	if n, err := done.RowsAffected(); err != nil || n == 1 {
		return owned, err
	}
	if err := s.check(ctx, tx, c.Lease, &prev, c.Batch.EffectsOutside()); err != nil {
		return false, err
	}
	return false, errors.New("the checkpoint is the expected one, and yet could not be moved: the table levada_offset was changed by something else")
}

// noteFinished has the job show effects that have happened outside, although the lease is lost.
func (s *sink) noteFinished(ctx context.Context, tx *sql.Tx, l stream.Lease, next stream.Checkpoint) error {
	done, err := tx.ExecContext(ctx, `update levada_job set records = ?, bytes = ?, bad = ?, updated_at = ? where id = ?`, int64(next.Seq), int64(next.Bytes), int64(next.Bad), s.now().UnixMicro(), l.Job)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fenced(ctx, tx, l))
	}
	return nil
}

// commit ends the transaction. Constraints that are checked only now are the handler's as well.
func (s *sink) commit(tx *sql.Tx, job string) error {
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit of job %s: %w", job, classify(err))
	}
	return nil
}

// CommitReplay implements [stream.ReplaySink]. A record that the handler refuses again, or panics at, waits again with the new reason.
func (s *sink) CommitReplay(ctx context.Context, l stream.Lease, b *stream.Batch) error {
	err := jobsql.Replay(ctx, l, b, func(r stream.Record) error { return s.replay(ctx, l, b, r) }, s.RefuseReplay)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}

func (s *sink) replay(ctx context.Context, l stream.Lease, b *stream.Batch, r stream.Record) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer s.hold()()
	defer tx.Rollback() // also when the handler panics; after Commit it does nothing
	if err := s.check(ctx, tx, l, nil, b.EffectsOutside()); err != nil {
		return err
	}
	if err := s.handle(ctx, tx, b); err != nil {
		return err
	}
	if skipped := b.Skipped(); len(skipped) > 0 {
		return stream.Skip(errors.New(skipped[0].Error))
	}
	done, err := tx.ExecContext(ctx, `update levada_quarantine set state = 'replayed', attempts = attempts + 1 where job = ? and seq = ? and state = 'replay'`, l.Job, int64(r.Seq))
	if err != nil {
		return ended(ctx, err)
	}
	if n, err := done.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return jobsql.Unmarked(l, r.Seq)
	}
	if err := s.check(ctx, tx, l, nil, b.EffectsOutside()); err != nil {
		return err
	}
	return s.commit(tx, l.Job)
}

// RefuseReplay implements [stream.ReplaySink].
func (s *sink) RefuseReplay(ctx context.Context, l stream.Lease, seq uint64, a stream.Attempt) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer s.hold()()
	defer tx.Rollback() // after Commit it does nothing
	if err := s.check(ctx, tx, l, nil, false); err != nil {
		return err
	}
	q, err := scanQuarantined(tx.QueryRowContext(ctx, `select `+jobsql.QuarantineColumns+` from levada_quarantine where job = ? and seq = ? and state = 'replay'`, l.Job, int64(seq)))
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	q = q.Refused(a)
	_, err = tx.ExecContext(ctx, `update levada_quarantine set state = ?, attempts = ?, class = ?, error = ?, history = ? where job = ? and seq = ?`,
		string(q.State), q.Attempts, string(q.Class), jobrule.Text(q.Error), jobrule.HistoryText(q.History), l.Job, int64(seq))
	if err != nil {
		return err
	}
	return tx.Commit()
}

func scanQuarantined(row scanner) (stream.Quarantined, error) {
	var r jobsql.QuarantineRow[sql.NullInt64]
	err := row.Scan(r.Dest()...)
	return r.Quarantined(fromMicros), err
}

// Quarantined implements [stream.QuarantineStore].
func (s *sink) Quarantined(ctx context.Context, job string, limit int, states ...stream.QuarantineState) ([]stream.Quarantined, error) {
	if limit <= 0 {
		limit = 1000
	}
	query, args := `select `+jobsql.QuarantineColumns+` from levada_quarantine where job = ?`, []any{job}
	if len(states) > 0 {
		query += ` and state in (?` + strings.Repeat(`, ?`, len(states)-1) + `)`
		for _, state := range states {
			args = append(args, string(state))
		}
	}
	rows, err := s.read.QueryContext(ctx, query+` order by seq limit ?`, append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("quarantine of job %s: %w", job, err)
	}
	defer rows.Close()
	var all []stream.Quarantined
	for rows.Next() {
		q, err := scanQuarantined(rows)
		if err != nil {
			return nil, fmt.Errorf("quarantine of job %s: %w", job, err)
		}
		all = append(all, q)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("quarantine of job %s: %w", job, err)
	}
	return all, nil
}

// MarkQuarantined implements [stream.QuarantineStore].
func (s *sink) MarkQuarantined(ctx context.Context, job string, to stream.QuarantineState, seqs ...uint64) (n int, err error) {
	if err := jobrule.QuarantineMark(to); err != nil {
		return 0, err
	}
	tx, err := s.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("quarantine of job %s: %w", job, err)
	}
	defer s.hold()()
	defer tx.Rollback() // after Commit it does nothing
	mark := func(condition string, args ...any) error {
		done, err := tx.ExecContext(ctx, `update levada_quarantine set state = ?1 where job = ? and state in ('waiting', 'replay') and state <> ?1`+condition, append([]any{string(to), job}, args...)...)
		if err != nil {
			return err
		}
		marked, err := done.RowsAffected()
		n += int(marked)
		return err
	}
	if len(seqs) == 0 {
		err = mark("")
	}
	for _, seq := range seqs {
		if err == nil {
			err = mark(` and seq = ?`, int64(seq))
		}
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return 0, fmt.Errorf("quarantine of job %s: %w", job, err)
	}
	return n, nil
}
