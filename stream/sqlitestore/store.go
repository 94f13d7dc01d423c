// Package sqlitestore keeps jobs, checkpoints and quarantined records in a SQLite file, for workers on one machine.
//
// One worker process at a time may use a file, see [Store.LockWorker]; other processes may submit, list and change jobs
// meanwhile. The file must be on a local disk: SQLite's locks do not hold on network file systems. Time is the machine's.
//
// SQLite has one writer at a time. A commit holds that right while the handler runs, so a handler must not call the store's
// methods (it would wait for itself; [Store.SubmitTx] is there for it), and a process that is frozen in a commit stops the others.
package sqlitestore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
	"github.com/levada-io/levada/stream/internal/jobsql"
)

// Store is a [stream.Store] in a SQLite file.
type Store struct {
	path string // absolute
	// write is one connection, whose transactions have the right to write from their beginning (BEGIN IMMEDIATE): a transaction that asks for it later
	// could not get it without being repeated. read has others, which never wait for a writer (WAL).
	write, read *sql.DB
	now         func() time.Time
	sinks       *statements
	keep        bool // do not migrate
	// turn is held by the one commit of the sinks that is under way. Those that wait for it hold no connection.
	turn chan struct{}
	// held is how many of our transactions have the right to write, or have just given it up. While one has it, no other process can claim, so a lease
	// cannot be lost.
	held atomic.Int32

	// mu guards what follows. It is never held during a statement.
	mu sync.Mutex
	// renewals could not be written in time: until when each of the leases lasts. They are written by the next claim of this process, before it looks
	// which leases have run out.
	renewals map[stream.Lease]time.Time
	// short is how many of the store's own transactions wait for the right to write. calm is closed when it becomes 0, and is nil while it is 0.
	short int
	calm  chan struct{}
}

// Option changes how a store is opened.
type Option func(*Store)

// WithClock makes the store judge time by another clock than the machine's. It is for tests.
func WithClock(now func() time.Time) Option { return func(s *Store) { s.now = now } }

// Open opens the file, or creates it, and brings its tables up to date, unless told [WithoutMigrate]. It returns an error that wraps [stream.ErrNewer] when a newer
// version of this package has changed them.
func Open(ctx context.Context, path string, options ...Option) (*Store, error) {
	s := &Store{now: time.Now, turn: make(chan struct{}, 1)}
	for _, option := range options {
		option(s)
	}
	if s.keep { // before anything is written: the file may be another program's
		if err := check(ctx, path); err != nil {
			return nil, err
		}
	}
	write, read, err := openFile(ctx, path)
	if err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, errors.Join(fmt.Errorf("open SQLite database %s: %w", path, err), read.Close(), write.Close())
	}
	s.path, s.write, s.read = path, write, read
	for _, set := range setsOf(path) {
		if err == nil && !s.keep {
			err = migrate(ctx, write, set.name, set.what)
		}
	}
	if err == nil {
		s.sinks, err = prepare(ctx, write, true)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes the file. Transactions under way end first.
func (s *Store) Close() error {
	var err error
	if s.sinks != nil {
		err = s.sinks.close()
	}
	return errors.Join(err, s.read.Close(), s.write.Close())
}

// DB returns the store's one connection for writing, for [Store.SubmitTx] and for the user's own tables. Its transactions have the
// right to write from their beginning; while one is open, the store's own writes wait for it.
func (s *Store) DB() *sql.DB { return s.write }

// columns are those of a job.
var columns = jobsql.Columns("")

type scanner interface{ Scan(...any) error }

func scan(row scanner) (stream.Status, error) {
	var r jobsql.Row[sql.NullInt64]
	err := row.Scan(r.Dest()...)
	return r.Status(fromMicros), err
}

// transact runs do in a transaction that has the right to write from its beginning. now is taken once it has that right, so
// times of transactions grow in their order.
func (s *Store) transact(ctx context.Context, do func(tx *sql.Tx, now time.Time) error) error {
	begun := s.waits()
	tx, err := s.write.BeginTx(ctx, nil)
	begun()
	if err != nil {
		return outage(err)
	}
	defer s.hold()()
	defer tx.Rollback() // after Commit it does nothing
	if err := do(tx, s.now()); err != nil {
		return outage(err)
	}
	return outage(tx.Commit())
}

// Submit implements [stream.Store].
func (s *Store) Submit(ctx context.Context, job stream.Job) (st stream.Status, err error) {
	err = s.transact(ctx, func(tx *sql.Tx, now time.Time) error {
		st, err = submit(ctx, tx, job, now)
		return err
	})
	if err != nil {
		return stream.Status{}, fmt.Errorf("submit: %w", err)
	}
	return st, nil
}

// SubmitTx is Submit in a transaction of the caller's, on the same file: the job is there if and only if the transaction commits.
func (s *Store) SubmitTx(ctx context.Context, tx *sql.Tx, job stream.Job) (stream.Status, error) {
	st, err := submit(ctx, tx, job, s.now())
	if err != nil {
		return stream.Status{}, fmt.Errorf("submit: %w", err)
	}
	return st, nil
}

func submit(ctx context.Context, tx *sql.Tx, job stream.Job, now time.Time) (stream.Status, error) {
	job, err := jobrule.Job(job)
	if err != nil {
		return stream.Status{}, err
	}
	notBefore := job.NotBefore
	if notBefore.IsZero() {
		notBefore = now
	}
	dedupe := jobsql.DedupeKey(job)
	// The insert comes first, since it takes the right to write in transactions that have not got it yet.
	st, err := scan(tx.QueryRowContext(ctx, `insert into levada_job (id, stream, target, query, dedupe_key, priority, not_before, on_bad, max_bad, state, created_at, updated_at)
		values (?, ?, ?, ?, ?, ?, ?, ?, ?, 'ready', ?10, ?10) on conflict do nothing returning `+columns,
		job.ID, job.Stream, job.Target, job.Query, dedupe, job.Priority, notBefore.UnixMicro(), string(job.OnBad), job.MaxBad, now.UnixMicro()))
	if !errors.Is(err, sql.ErrNoRows) {
		return st, err
	}
	st, err = scan(tx.QueryRowContext(ctx, `select `+columns+` from levada_job where id = ?1 or stream = ?3 and dedupe_key = ?2 and state <> 'cancelled' order by id = ?1 desc limit 1`, job.ID, dedupe, job.Stream))
	if err == nil {
		err = jobrule.Same(job, st.Job)
	}
	st.Existed = true
	return st, err
}

// Claim implements [stream.Store].
func (s *Store) Claim(ctx context.Context, c stream.Claim) (claimed []stream.Status, err error) {
	if err := jobrule.Claim(c); err != nil {
		return nil, err
	}
	streams, err := json.Marshal(c.Streams)
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	owner := jobrule.Owner(c.Owner)
	var renewals map[stream.Lease]time.Time
	err = s.transact(ctx, func(tx *sql.Tx, now time.Time) error {
		claimed = nil
		var err error
		if renewals, err = s.renewDeferred(ctx, tx); err != nil {
			return err
		}
		due, err := dueJobs(ctx, tx, now, string(streams), owner.Incarnation, c.Max)
		if err != nil {
			return err
		}
		for _, job := range due {
			st, err := scan(tx.QueryRowContext(ctx, `update levada_job set state = 'running', epoch = epoch + 1, attempts = attempts + 1,
				owner_pod = ?, owner_pod_uid = ?, owner_container = ?, owner_incarnation = ?, lease_ttl = ?, lease_until = ?,
				claimed_at = ?7, started_at = coalesce(started_at, ?7), updated_at = ?7 where n = ?8 returning `+columns,
				owner.Pod, owner.PodUID, owner.Container, owner.Incarnation, c.TTL.Microseconds(), now.Add(c.TTL).UnixMicro(), now.UnixMicro(), job.n))
			if err != nil {
				return err
			}
			st.Reclaimed = job.died
			claimed = append(claimed, st)
		}
		return nil
	})
	if err == nil {
		s.forgetDeferred(renewals)
	}
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	return claimed, nil
}

type dueJob struct {
	n    int64
	died bool
}

func dueJobs(ctx context.Context, tx *sql.Tx, now time.Time, streams, incarnation string, most int) (due []dueJob, err error) {
	rows, err := tx.QueryContext(ctx, `select n, died from (
			select * from (select n, 0 as died, priority, not_before as due from levada_job
				where state = 'ready' and not_before <= ?1 and (?2 = 'null' or stream in (select value from json_each(?2)))
				order by priority desc, not_before limit ?3)
			union all
			select * from (select n, owner_incarnation = '' or owner_incarnation <> ?4 as died, priority, lease_until as due from levada_job
				where state = 'running' and lease_until <= ?1 and (?2 = 'null' or stream in (select value from json_each(?2)))
				order by priority desc, lease_until limit ?3))
		order by priority desc, due, n limit ?3`, now.UnixMicro(), streams, most, incarnation)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var job dueJob
		if err := rows.Scan(&job.n, &job.died); err != nil {
			return nil, err
		}
		due = append(due, job)
	}
	return due, rows.Err()
}

// leased runs an update of the job whose current lease is l.
func (s *Store) leased(ctx context.Context, l stream.Lease, update string, args func(now time.Time) []any) error {
	return s.transact(ctx, func(tx *sql.Tx, now time.Time) error {
		done, err := tx.ExecContext(ctx, update+` where id = ? and epoch = ? and state = 'running'`, append(args(now), l.Job, int64(l.Epoch))...)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 1 {
			return err
		}
		return fenced(ctx, tx, l)
	})
}

// fenced says why the lease is not the job's current one.
func fenced(ctx context.Context, tx *sql.Tx, l stream.Lease) error {
	st, err := get(ctx, tx, l.Job)
	return jobsql.Fenced(l, st, err)
}

// Renew implements [stream.Store].
func (s *Store) Renew(ctx context.Context, l stream.Lease, p stream.Progress, ttl time.Duration) error {
	if err := jobrule.TTL("renew", ttl); err != nil {
		return err
	}
	since := s.now()
	trying, cancel := withinHalf(ctx, renewWait)
	defer cancel()
	err := s.leased(trying, l, `update levada_job set lease_ttl = ?, lease_until = ?, records = ?, bytes = ?, bad = ?, size = ?, updated_at = ?`, func(now time.Time) []any {
		return slices.Concat([]any{ttl.Microseconds(), now.Add(ttl).UnixMicro()}, jobsql.Progress(p), []any{now.UnixMicro()})
	})
	if err != nil && trying.Err() != nil && ctx.Err() == nil && s.held.Load() > 0 {
		s.deferRenewal(l, since.Add(ttl))
		return nil
	}
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	return nil
}

// Note implements [stream.Store].
func (s *Store) SaveState(ctx context.Context, l stream.Lease, crash stream.CrashState, retry stream.RetryState) error {
	err := s.leased(ctx, l, `update levada_job set probe = ?, probe_until = ?, hand = ?, deaths = ?, no_progress = ?, stalled = ?, denied = ?, dependent = ?,
		reason = iif(?9, '', reason), last_error = iif(?9, '', last_error), updated_at = ?10`, func(now time.Time) []any {
		return append(jobsql.Noted(crash, retry), now.UnixMicro())
	})
	if err != nil {
		return fmt.Errorf("note: %w", err)
	}
	return nil
}

// Release implements [stream.Store].
func (s *Store) Release(ctx context.Context, l stream.Lease, r stream.Release) error {
	if err := jobrule.Release(l, r); err != nil {
		return err
	}
	err := s.leased(ctx, l, `update levada_job set state = ?1, lease_until = null, not_before = iif(?1 = 'ready', ?2, not_before), finished_at = iif(?1 = 'ready', null, ?3), updated_at = ?3,
		no_progress = ?, records = ?, bytes = ?, bad = ?, size = ?, reason = ?, last_error = ?, probe = ?, probe_until = ?, hand = ?, deaths = ?,
		stalled = ?, denied = ?, dependent = ?`, func(now time.Time) []any {
		return append([]any{string(r.State), now.Add(r.After).UnixMicro(), now.UnixMicro()}, jobsql.Given(r)...)
	})
	if jobsql.Released(l, r, err, func() (stream.Status, error) { return s.Get(ctx, l.Job) }) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// Expire implements [stream.Store].
func (s *Store) Expire(ctx context.Context, dead stream.ExpireFilter) (n int, err error) {
	if err := jobrule.CheckExpire(dead); err != nil {
		return 0, err
	}
	err = s.transact(ctx, func(tx *sql.Tx, now time.Time) error {
		done, err := tx.ExecContext(ctx, `update levada_job set lease_until = ?1, updated_at = ?1 where state = 'running' and lease_until > ?1
			and (?2 = '' or owner_pod_uid = ?2) and (?3 = '' or owner_incarnation = ?3) and (?4 = '' or owner_container in ('', ?4))
			and (?5 = '' or owner_incarnation <> ?5) and (?6 is null or claimed_at < ?6)`,
			now.UnixMicro(), dead.PodUID, dead.Incarnation, dead.Container, dead.ExceptIncarnation, micros(dead.ClaimedBefore))
		if err != nil {
			return err
		}
		ended, err := done.RowsAffected()
		n = int(ended)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("expire: %w", err)
	}
	return n, nil
}

// Get implements [stream.Store].
func (s *Store) Get(ctx context.Context, id string) (stream.Status, error) {
	return get(ctx, s.read, id)
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func get(ctx context.Context, q querier, id string) (stream.Status, error) {
	st, err := scan(q.QueryRowContext(ctx, `select `+columns+` from levada_job where id = ?`, id))
	return jobsql.Found(id, st, err, sql.ErrNoRows)
}

// List implements [stream.Store].
func (s *Store) List(ctx context.Context, f stream.Filter) ([]stream.Status, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 1000
	}
	query, args := `select `+columns+` from levada_job where true`, []any{}
	if len(f.States) > 0 {
		query += ` and state in (?` + strings.Repeat(`, ?`, len(f.States)-1) + `)`
		for _, state := range f.States {
			args = append(args, string(state))
		}
	}
	if len(f.Streams) > 0 {
		query += ` and stream in (?` + strings.Repeat(`, ?`, len(f.Streams)-1) + `)`
		for _, name := range f.Streams {
			args = append(args, name)
		}
	}
	rows, err := s.read.QueryContext(ctx, query+` order by n desc limit ?`, append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	defer rows.Close()
	var all []stream.Status
	for rows.Next() {
		st, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		all = append(all, st)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	return all, nil
}

// transitions have the time as their first parameter.
var transitions = jobsql.TransitionsIn(jobsql.Dialect{Now: `?1`, Due: `?1`, Greatest: `max`})

// change takes a job from one of some states to another.
func (s *Store) change(ctx context.Context, t jobsql.Transition, id string) (st stream.Status, err error) {
	err = s.transact(ctx, func(tx *sql.Tx, now time.Time) error {
		st, err = scan(tx.QueryRowContext(ctx, `update levada_job set updated_at = ?1, lease_until = null, `+t.Set+` where id = ?2 and state in (`+t.From+`) returning `+columns, now.UnixMicro(), id))
		if !errors.Is(err, sql.ErrNoRows) {
			if code(err)&0xff == sqlite3.SQLITE_CONSTRAINT { // only Retry of a cancelled job can meet this
				err = jobrule.KeyTaken(id)
			}
			return err
		}
		if st, err = get(ctx, tx, id); err != nil {
			return err
		}
		return jobsql.WrongState(st)
	})
	if err != nil {
		return stream.Status{}, fmt.Errorf("%s: %w", t.What, err)
	}
	return st, nil
}

// Cancel implements [stream.Store].
func (s *Store) Cancel(ctx context.Context, id string) (stream.Status, error) {
	return s.change(ctx, transitions.Cancel, id)
}

// Pause implements [stream.Store].
func (s *Store) Pause(ctx context.Context, id string) (stream.Status, error) {
	return s.change(ctx, transitions.Pause, id)
}

// Resume implements [stream.Store].
func (s *Store) Resume(ctx context.Context, id string) (stream.Status, error) {
	return s.change(ctx, transitions.Resume, id)
}

// Retry implements [stream.Store].
func (s *Store) Retry(ctx context.Context, id string) (stream.Status, error) {
	return s.change(ctx, transitions.Retry, id)
}

// Owners implements [stream.Store].
func (s *Store) Owners(ctx context.Context) ([]stream.Owner, error) {
	rows, err := s.read.QueryContext(ctx, jobsql.OwnersQuery)
	if err != nil {
		return nil, fmt.Errorf("owners: %w", err)
	}
	defer rows.Close()
	var owners []stream.Owner
	for rows.Next() {
		var o stream.Owner
		if err := rows.Scan(&o.Pod, &o.PodUID, &o.Container, &o.Incarnation); err != nil {
			return nil, fmt.Errorf("owners: %w", err)
		}
		owners = append(owners, o)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("owners: %w", err)
	}
	return owners, nil
}

// Orphans counts the jobs that no claim would ever find, although they are neither final nor paused. There must be none: it is
// for tests and alarms.
func (s *Store) Orphans(ctx context.Context) (n int, err error) {
	err = s.read.QueryRowContext(ctx, jobsql.OrphansQuery).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("orphans: %w", err)
	}
	return n, nil
}
