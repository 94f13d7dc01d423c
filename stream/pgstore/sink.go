package pgstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
	"github.com/levada-io/levada/stream/internal/jobsql"
)

// Handler stores the effects of a batch's records in the transaction, which is READ COMMITTED, and which the sink ends: Commit and
// Rollback of the transaction that a handler gets only return an error, and halt the job. Errors of class 22 (data) and 23
// (constraints) are taken as marked with [stream.Skip], those of constraints that depend on other rows (foreign keys, uniqueness, exclusion)
// with [stream.Later], unless the handler has marked them itself.
//
// The transaction begins with the handler's first statement. After that a handler must not spend longer than [Limits.Idle] between two
// statements, nor after the last: if it does, it is too slow and gets fewer records at once. If one record alone takes it longer, raise the limit, and the lease above it.
type Handler func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error

// Limits are those of the sink's transactions. They bound how long an owner that froze, or lost its connection, holds what it has
// locked. 0 means the default, a negative time no limit.
type Limits struct {
	// Idle is how long a transaction may wait for its client (idle_in_transaction_session_timeout). It should be less than
	// the lease lasts. Default: 5 s, a third of the default lease.
	Idle time.Duration
	// Statement is how long a statement may take (statement_timeout). Default: 15 s.
	Statement time.Duration
	// Lock is how long a statement may wait for a lock (lock_timeout). Default: 10 s, which outlasts Idle: then the lock of
	// an owner that froze is free.
	Lock time.Duration
	// Transaction is how long the whole transaction may take (transaction_timeout), from Postgres 17 on. Default: 60 s.
	Transaction time.Duration
}

// settings are what the sinks of a store share.
type settings struct {
	begin string
	idle  time.Duration // how long the client may let a transaction wait; 0: without limit
	// lockWait is how long one try of Fence waits for a commit under way.
	lockWait time.Duration
}

func newSettings(ctx context.Context, pool *pgxpool.Pool, l Limits) (settings, error) {
	var version int
	if err := pool.QueryRow(ctx, `select current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return settings{}, fmt.Errorf("ask the server's version: %w", err)
	}
	if version < 120000 {
		return settings{}, fmt.Errorf("the server's version is %d, but must be at least 120000 (Postgres 12)", version)
	}
	var sql strings.Builder
	sql.WriteString(begin)
	limit := func(setting string, d, byDefault time.Duration) {
		// Below a millisecond the setting would be 0, which means none.
		fmt.Fprintf(&sql, "; set local %s = %d", setting, max(0, max(time.Millisecond, cmp.Or(d, byDefault)).Milliseconds()))
	}
	for _, s := range []struct {
		name         string
		d, byDefault time.Duration
		since        int
	}{
		{"idle_in_transaction_session_timeout", l.Idle, 5 * time.Second, 0},
		{"statement_timeout", l.Statement, 15 * time.Second, 0},
		{"lock_timeout", l.Lock, 10 * time.Second, 0},
		{"transaction_timeout", l.Transaction, time.Minute, 170000},
	} {
		if version < s.since {
			continue
		}
		if s.d < 0 {
			fmt.Fprintf(&sql, "; set local %s = 0", s.name)
			continue
		}
		limit(s.name, s.d, s.byDefault)
	}
	// A commit that was reported must outlast a crash: the job store, which may be elsewhere, builds on it.
	sql.WriteString("; select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'")
	return settings{begin: sql.String(), idle: max(0, cmp.Or(l.Idle, 5*time.Second)), lockWait: time.Second}, nil
}

// sink keeps effects, checkpoint and quarantine in one database.
//
// The row of levada_offset is the fence: it has the epoch that was fenced last, and a commit updates it only where that epoch and the checkpoint before are
// the commit's own. Both are checked by the update that moves the checkpoint, in the transaction of the effects. So of two owners one commits, and the
// other has changed nothing. That update comes last: the lock on the row lasts for the commit alone, and not for the handler.
type sink struct {
	settings
	pool    *tables
	handler Handler // nil: checkpoints only
	jobs    *Store  // nil when the jobs are in another database: then the fence is all that is checked, and no lease is renewed
}

// Sink returns a sink in the store's own database. Each commit also checks, in its transaction, that the job is still running in the
// lease's epoch, and renews the lease: a job that was cancelled or paused commits nothing more. Without a handler it keeps
// checkpoints only, for effects that are elsewhere: of those it also accounts for what had happened by then ([stream.Batch.EffectsOutside]).
func (s *Store) Sink(handler Handler) stream.ReplaySink {
	return &sink{settings: s.sink, pool: s.pool, handler: handler, jobs: s}
}

// NewSink returns a sink in another database than the store's, and makes its tables there, unless told [WithoutMigrate]: then [MigrateSink] does. Its
// offsets and quarantined records stay until [PurgeSink] deletes them.
func NewSink(ctx context.Context, pool *pgxpool.Pool, handler Handler, opts ...Option) (stream.ReplaySink, error) {
	o, err := optionsOf(opts)
	if err != nil {
		return nil, err
	}
	t, err := connectTables(ctx, pool, o.schema)
	if err != nil {
		return nil, err
	}
	if err := bringUp(ctx, t, sinkSet, o.migrate); err != nil {
		return nil, err
	}
	settings, err := newSettings(ctx, pool, o.limits)
	if err != nil {
		return nil, err
	}
	return &sink{settings: settings, pool: t, handler: handler}, nil
}

func scanOffset(row pgx.Row) (o jobsql.Offset, err error) {
	if err := row.Scan(o.Dest()...); err != nil {
		return o, err
	}
	return o, o.Check()
}

// Fence implements [stream.Sink]. While an older owner's commit is under way it waits, until ctx ends if need be: an owner that froze in it
// is thrown out by the server after [Limits.Idle].
func (s *sink) Fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	for {
		c, err := s.fence(ctx, l)
		if err == nil {
			return c, nil
		}
		if !passes(err) || ctx.Err() != nil {
			return stream.Checkpoint{}, fmt.Errorf("fence: %w", fenceWait(err))
		}
	}
}

// passes reports whether another's commit was in the way.
func passes(err error) bool {
	switch sqlState(err) {
	case "55P03", "40001", "40P01": // lock not available, serialization failure, deadlock
		return true
	}
	return false
}

func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

func (s *sink) fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	var mine, now *jobsql.Offset
	into := func(c **jobsql.Offset) func(pgx.Rows) error {
		return func(rows pgx.Rows) error {
			for rows.Next() {
				got, err := scanOffset(rows)
				if err != nil {
					return fmt.Errorf("job %s: %w", l.Job, err)
				}
				*c = &got
			}
			return rows.Err()
		}
	}
	batch := &pgx.Batch{}
	batch.Queue(begin)
	batch.Queue(`select set_config('lock_timeout', $1::text, true), set_config('statement_timeout', '0', true)`, fmt.Sprint(s.lockWait.Milliseconds()))
	// It writes also when the epoch is there already: the row's lock is what waits for a commit under way.
	batch.Queue(`insert into levada_offset as o (job, version, epoch, token, digest) values ($1::text, $2::integer, $3::bigint, ''::bytea, $4::bytea)
		on conflict (job) do update set epoch = excluded.epoch, updated_at = excluded.updated_at where o.epoch <= excluded.epoch and o.version <= excluded.version
		returning `+jobsql.OffsetColumns, l.Job, stream.CheckpointVersion, int64(l.Epoch), make([]byte, len(stream.Digest{}))).Query(into(&mine))
	batch.Queue(`select `+jobsql.OffsetColumns+` from levada_offset where job = $1::text`, l.Job).Query(into(&now))
	batch.Queue(`commit`)
	if err := send(ctx, s.pool, batch); err != nil {
		return stream.Checkpoint{}, err
	}
	switch {
	case mine != nil:
		return mine.Checkpoint, nil
	case now == nil:
		return stream.Checkpoint{}, fmt.Errorf("job %s: its row in levada_offset was deleted meanwhile", l.Job)
	case now.Version > stream.CheckpointVersion:
		return stream.Checkpoint{}, jobrule.Newer(l.Job, now.Version)
	}
	return stream.Checkpoint{}, jobrule.Fenced(l, "epoch %d was fenced already", now.Epoch)
}

// check returns the error for a lease that may not commit, or for a checkpoint that is not the stored one; nil if both are right.
// It asks after the transaction has failed: what it sees may be newer, never older. Of effects outside it does not check that the lease is the job's.
func (s *sink) check(ctx context.Context, l stream.Lease, prev *stream.Checkpoint, outside bool) error {
	c, err := scanOffset(s.pool.QueryRow(ctx, `select `+jobsql.OffsetColumns+` from levada_offset where job = $1::text`, l.Job))
	found := !errors.Is(err, pgx.ErrNoRows)
	if err != nil && found {
		return fmt.Errorf("job %s: %w", l.Job, err)
	}
	if err := jobsql.MayCommit(l, c, found); err != nil {
		return err
	}
	if s.jobs != nil {
		st, err := s.jobs.Get(ctx, l.Job)
		if err != nil && !errors.Is(err, stream.ErrNotFound) {
			return err
		}
		if err != nil || !outside && (st.Epoch != l.Epoch || st.State != stream.Running) {
			return s.jobs.fenced(ctx, l)
		}
	}
	if prev != nil && !jobsql.Same(c.Checkpoint, *prev) {
		return jobrule.Conflict(l, prev.Seq, c.Seq)
	}
	return nil
}

// Commit implements [stream.Sink].
func (s *sink) Commit(ctx context.Context, c *stream.Commit) error {
	outside := c.Batch.EffectsOutside()
	err := s.commit(ctx, c, true)
	if errors.Is(err, errRefused) && outside && s.jobs != nil {
		// The lease may be lost, which must not cause the effects again. No handler is called with these.
		if err = s.commit(ctx, c, false); err == nil {
			c.LeaseLost()
		}
	}
	return s.explain(ctx, "commit", c.Lease, &c.Prev, outside, err)
}

// commit is one transaction of Commit. owned: it is refused unless the lease is the job's, and renews it.
func (s *sink) commit(ctx context.Context, c *stream.Commit, owned bool) error {
	var sent time.Time
	err := s.transact(ctx, c.Batch, func(batch *pgx.Batch) ([]int, error) {
		sent = time.Now()
		next, quarantine, err := c.Result()
		if err == nil {
			err = jobrule.Commit(c.Lease, c.Prev, next)
		}
		if err != nil {
			return nil, err
		}
		return s.advance(batch, c, next, quarantine, owned), nil
	})
	if err == nil && owned && s.jobs != nil {
		c.LeaseRenewed(sent)
	}
	return err
}

// errRefused: one of the statements that check the fence found no row.
var errRefused = errors.New("the fence refused the commit")

// explain finds out what kept a transaction from committing. A stale owner meets the rows of its successor, which looks as if its
// records were bad: so it is asked also when the handler failed at data.
func (s *sink) explain(ctx context.Context, what string, l stream.Lease, prev *stream.Checkpoint, outside bool, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errRefused) || recordsFault(err) {
		if fault := s.check(ctx, l, prev, outside); jobsql.Refuses(fault) {
			return fmt.Errorf("%s: %w", what, fault)
		} else if errors.Is(err, errRefused) {
			// The transaction that was in the way has ended, or cannot be identified.
			return fmt.Errorf("%s of job %s: %w", what, l.Job, errors.Join(err, fault))
		}
	}
	return fmt.Errorf("%s of job %s: %w", what, l.Job, err)
}

// transact calls the handler in a transaction, and then sends the statements that finish queues, and the commit, in one round trip: a process
// that freezes at any point, or loses its connection, leaves no lock on the checkpoint behind. finish returns the numbers of the
// statements that fail if the fence refuses them.
func (s *sink) transact(ctx context.Context, b *stream.Batch, finish func(*pgx.Batch) (fences []int, err error)) error {
	conn, release, err := s.acquire(ctx)
	if err != nil {
		return unconnected(s.pool, err)
	}
	defer release()
	tx := &handlerTx{ctx: ctx, conn: conn.Conn(), begin: s.begin}
	committed := false
	defer func() {
		if !committed { // also when the handler panics, or the transaction has begun and a setting failed
			rollback(ctx, conn.Conn())
		}
	}()
	if err := s.handle(ctx, tx, b); err != nil {
		return err
	}
	if err := tx.start(ctx); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	batch := &pgx.Batch{}
	fences, err := finish(batch)
	if err != nil {
		return err
	}
	batch.Queue(`commit`)
	last := batch.Len() - 1
	results := conn.SendBatch(ctx, s.pool.qualifyBatch(batch))
	for i := range batch.Len() {
		tag, err := results.Exec()
		switch {
		case err == nil && i == last && tag.String() != "COMMIT":
			err = fmt.Errorf("the server answered %q to the commit", tag)
		case err == nil:
			continue
		case i == last: // constraints that are checked only now are the handler's as well
			err = classify(s.pool.named(err, "", false))
		default:
			err = s.pool.named(err, "", true)
			for _, fence := range fences {
				if i == fence && sqlState(err) == "22012" {
					err = errRefused
				}
			}
		}
		results.Close() // it repeats the error
		return err
	}
	committed = true
	return results.Close()
}

// handle calls the handler.
func (s *sink) handle(ctx context.Context, tx *handlerTx, b *stream.Batch) (err error) {
	b.Reset()
	if s.handler == nil || len(b.Records) == 0 {
		return nil
	}
	defer func() {
		if tx.err != nil { // what the handler made of it, an error or a panic, does not count
			_ = recover()
			err = fmt.Errorf("begin: %w", tx.err)
		}
	}()
	err = s.handler(ctx, tx, b)
	if err != nil {
		err = s.pool.named(s.impatient(tx, err), tx.statement, false)
	}
	where := func(err error) error {
		return fmt.Errorf("records %d to %d: %w", b.Records[0].Seq, b.Records[len(b.Records)-1].Seq, err)
	}
	switch {
	case ctx.Err() != nil && err == nil:
		return where(ctx.Err())
	case err != nil && !errors.Is(err, errEnded):
		return where(classify(err))
	case tx.ended || err == nil && tx.tx != nil && tx.conn.PgConn().TxStatus() == 'I' && !tx.conn.IsClosed():
		return where(stream.Halt(errEnded))
	case err != nil:
		return where(err)
	case tx.tx != nil && tx.conn.PgConn().TxStatus() != 'T':
		return where(errors.New("the handler returned nil, but one of its statements had failed, or it left rows open: return the error, or use a savepoint (tx.Begin)"))
	}
	return nil
}

var errEnded = errors.New("the handler must leave the end of the transaction to the sink: remove its Commit or Rollback")

// refusing makes an update one that fails unless it changes a row. Only so can the commit be sent with it: an error keeps the
// server from executing what comes after.
func refusing(update string) string {
	return `with changed as (` + update + ` returning 1) select 1 / count(*) from changed`
}

var (
	advanceOffset = refusing(`update levada_offset set version = $3::integer, seq = $4::bigint, token = $5::bytea, digest = $6::bytea, bytes = $7::bigint, bad = $8::bigint,
		done = $9::boolean, updated_at = clock_timestamp()
		where job = $1::text and epoch = $2::bigint and seq = $10::bigint and token = $11::bytea and digest = $12::bytea and bytes = $13::bigint and bad = $14::bigint and done = $15::boolean`)
	keepLease = refusing(`update levada_job set lease_until = greatest(lease_until, clock_timestamp() + lease_ttl * interval '1 microsecond'),
		records = $3::bigint, bytes = $4::bigint, bad = $5::bigint, updated_at = clock_timestamp()
		where id = $1::text and epoch = $2::bigint and state = 'running'`)
	keepOffset   = refusing(`update levada_offset set updated_at = clock_timestamp() where job = $1::text and epoch = $2::bigint`)
	noteFinished = refusing(`update levada_job set records = $2::bigint, bytes = $3::bigint, bad = $4::bigint, updated_at = clock_timestamp() where id = $1::text`)
	touchLease   = refusing(`update levada_job set lease_until = greatest(lease_until, clock_timestamp() + lease_ttl * interval '1 microsecond'), updated_at = clock_timestamp()
		where id = $1::text and epoch = $2::bigint and state = 'running'`)
)

// advance queues what goes with the effects. The fence comes last, and so its lock lasts for the commit alone.
func (s *sink) advance(batch *pgx.Batch, c *stream.Commit, next stream.Checkpoint, quarantine []stream.Quarantined, owned bool) (fences []int) {
	for _, q := range quarantine {
		batch.Queue(`insert into levada_quarantine (job, seq, key, payload, error, class, attempts, history, state)
			values ($1::text, $2::bigint, $3::bytea, $4::bytea, $5::text, $6::text, $7::bigint, $8::text, 'waiting')
			on conflict (job, seq) do update set key = excluded.key, payload = excluded.payload, error = excluded.error, class = excluded.class, attempts = excluded.attempts, history = excluded.history, state = excluded.state`,
			c.Lease.Job, int64(q.Seq), jobsql.NotNull(q.Key), q.Payload, jobrule.Text(q.Error), string(q.Class), q.Attempts, jobrule.HistoryText(q.History))
	}
	epoch, prev := int64(c.Lease.Epoch), c.Prev
	if s.jobs != nil {
		fences = append(fences, batch.Len())
		if owned {
			batch.Queue(keepLease, c.Lease.Job, epoch, int64(next.Seq), int64(next.Bytes), int64(next.Bad))
		} else {
			batch.Queue(noteFinished, c.Lease.Job, int64(next.Seq), int64(next.Bytes), int64(next.Bad))
		}
	}
	fences = append(fences, batch.Len())
	batch.Queue(advanceOffset, c.Lease.Job, epoch,
		stream.CheckpointVersion, int64(next.Seq), jobsql.NotNull(next.Token), next.Digest[:], int64(next.Bytes), int64(next.Bad), next.Done,
		int64(prev.Seq), jobsql.NotNull(prev.Token), prev.Digest[:], int64(prev.Bytes), int64(prev.Bad), prev.Done)
	return fences
}

// keep queues the fence of a transaction that leaves the checkpoint as it is. owned: the lease has to be the job's, and is renewed.
func (s *sink) keep(batch *pgx.Batch, l stream.Lease, owned bool) (fences []int) {
	if s.jobs != nil && owned {
		fences = append(fences, batch.Len())
		batch.Queue(touchLease, l.Job, int64(l.Epoch))
	}
	fences = append(fences, batch.Len())
	batch.Queue(keepOffset, l.Job, int64(l.Epoch))
	return fences
}

// CommitReplay implements [stream.ReplaySink]. A record that the handler refuses again, or panics at, waits again with the new reason.
func (s *sink) CommitReplay(ctx context.Context, l stream.Lease, b *stream.Batch) error {
	return jobsql.Replay(ctx, l, b, func(r stream.Record) error { return s.replay(ctx, l, b, r) }, s.RefuseReplay)
}

// replay is one attempt of CommitReplay.
func (s *sink) replay(ctx context.Context, l stream.Lease, b *stream.Batch, r stream.Record) error {
	outside := b.EffectsOutside()
	err := s.transact(ctx, b, func(batch *pgx.Batch) ([]int, error) {
		if skipped := b.Skipped(); len(skipped) > 0 {
			return nil, stream.Skip(errors.New(skipped[0].Error))
		}
		marked := batch.Len()
		batch.Queue(refusing(`update levada_quarantine set state = 'replayed', attempts = attempts + 1 where job = $1::text and seq = $2::bigint and state = 'replay'`), l.Job, int64(r.Seq))
		return append(s.keep(batch, l, !outside), marked), nil
	})
	if errors.Is(err, errRefused) && s.check(ctx, l, nil, outside) == nil {
		return fmt.Errorf("replay: %w", jobsql.Unmarked(l, r.Seq))
	}
	return s.explain(ctx, "replay", l, nil, outside, err)
}

// RefuseReplay implements [stream.ReplaySink].
func (s *sink) RefuseReplay(ctx context.Context, l stream.Lease, seq uint64, a stream.Attempt) error {
	// Only the owner of the job writes this row, so it does not change between reading and writing, and the fence is checked below.
	q, err := scanQuarantined(s.pool.QueryRow(ctx, `select `+jobsql.QuarantineColumns+` from levada_quarantine where job = $1::text and seq = $2::bigint and state = 'replay'`, l.Job, int64(seq)))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("put back into quarantine: job %s: %w", l.Job, err)
	}
	q = q.Refused(a)
	err = s.transact(ctx, &stream.Batch{}, func(batch *pgx.Batch) ([]int, error) {
		batch.Queue(`update levada_quarantine set state = $3::text, attempts = $4::bigint, class = $5::text, error = $6::text, history = $7::text
			where job = $1::text and seq = $2::bigint and state = 'replay'`,
			l.Job, int64(seq), string(q.State), q.Attempts, string(q.Class), jobrule.Text(q.Error), jobrule.HistoryText(q.History))
		return s.keep(batch, l, true), nil
	})
	return s.explain(ctx, "put back into quarantine", l, nil, false, err)
}

func scanQuarantined(row pgx.Row) (stream.Quarantined, error) {
	var r jobsql.QuarantineRow[*time.Time]
	err := row.Scan(r.Dest()...)
	return r.Quarantined(utc), err
}

// Quarantined implements [stream.QuarantineStore].
func (s *sink) Quarantined(ctx context.Context, job string, limit int, states ...stream.QuarantineState) ([]stream.Quarantined, error) {
	if limit <= 0 {
		limit = 1000
	}
	wanted := make([]string, 0, len(states))
	for _, state := range states {
		wanted = append(wanted, string(state))
	}
	rows, err := s.pool.Query(ctx, `select `+jobsql.QuarantineColumns+` from levada_quarantine
		where job = $1::text and (cardinality($2::text[]) = 0 or state = any ($2::text[])) order by seq limit $3::bigint`, jobrule.Text(job), wanted, limit)
	if err != nil {
		return nil, fmt.Errorf("quarantine of job %s: %w", job, err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (stream.Quarantined, error) { return scanQuarantined(row) })
	if err != nil {
		return nil, fmt.Errorf("quarantine of job %s: %w", job, err)
	}
	return all, nil
}

// MarkQuarantined implements [stream.QuarantineStore].
func (s *sink) MarkQuarantined(ctx context.Context, job string, to stream.QuarantineState, seqs ...uint64) (int, error) {
	if err := jobrule.QuarantineMark(to); err != nil {
		return 0, err
	}
	wanted := make([]int64, 0, len(seqs))
	for _, seq := range seqs {
		wanted = append(wanted, int64(seq))
	}
	n, err := once(ctx, s.pool, `update levada_quarantine set state = $2::text
		where job = $1::text and state in ('waiting', 'replay') and state <> $2::text and (cardinality($3::bigint[]) = 0 or seq = any ($3::bigint[]))`, nil, jobrule.Text(job), string(to), wanted)
	if err != nil {
		return 0, fmt.Errorf("quarantine of job %s: %w", job, err)
	}
	return int(n), nil
}
