// Package pgstore keeps jobs, checkpoints and quarantined records in Postgres, for any number of workers.
//
// It works through any pgxpool.Pool, and takes nothing from the session's settings for granted: transactions are READ COMMITTED,
// with limits of their own. Time is the server's.
package pgstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
	"github.com/levada-io/levada/stream/internal/jobsql"
	"github.com/levada-io/levada/stream/internal/notifybus"
)

// NotifyChannel is the channel on which the store notifies of jobs that became due, as "<stream> <job>", both escaped as in a query of a
// URL: that is what package pgnotify reads.
const NotifyChannel = notifybus.Channel

// Store is a [stream.Store] in Postgres.
type Store struct {
	// pool has the connections of handlers and commits, and of whatever is neither a claim nor a lease.
	pool *tables
	// leases has connections of the store's own, so that handlers which hold the whole pool cost no lease.
	leases leasePool
	own    bool     // the pool is ours to close
	notify bool     // of jobs that become due, in the transaction that makes them so
	sink   settings // of the sinks in this database
}

// Option changes a store or a sink.
type Option func(*options)

type options struct {
	quiet   bool // no notifications
	limits  Limits
	schema  string // empty: the one that search_path names
	migrate bool   // tables may be created and changed
}

func optionsOf(opts []Option) (options, error) {
	o := options{migrate: true}
	for _, opt := range opts {
		opt(&o)
	}
	return o, checkSchema(o.schema)
}

// WithSchema keeps the tables in a schema of the database instead of the one that search_path names. The handlers' search_path stays as it
// is. [Migrate] creates the schema if it is not there.
func WithSchema(schema string) Option { return func(o *options) { o.schema = schema } }

// WithoutMigrate leaves the tables as they are: nothing is created or changed, and tables that are missing or too old are an error that wraps
// [stream.ErrOlder]. It is for programs whose database user must not change tables, and for those that only read; [Migrate], or
// `levada stream migrate`, is then run as a step of the deployment.
func WithoutMigrate() Option { return func(o *options) { o.migrate = false } }

// WithoutNotify keeps the store from notifying of jobs on [NotifyChannel], for databases where NOTIFY is not to be used.
func WithoutNotify() Option { return func(o *options) { o.quiet = true } }

// WithLimits sets the limits of the sink's transactions.
func WithLimits(l Limits) Option { return func(o *options) { o.limits = l } }

// Open connects to a database as [Connect] does, and otherwise does what [New] does. [Store.Close] ends the connections.
func Open(ctx context.Context, dsn string, opts ...Option) (*Store, error) {
	pool, err := Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("open the Postgres store: %w", err)
	}
	s, err := New(ctx, pool, opts...)
	if err != nil {
		pool.Close()
		return nil, err
	}
	s.own = true
	return s, nil
}

// New returns a store that uses the pool, and brings its tables up to date, unless told [WithoutMigrate]. It returns an error that wraps [stream.ErrNewer] when a
// newer version of this package has changed them.
func New(ctx context.Context, pool *pgxpool.Pool, opts ...Option) (*Store, error) {
	o, err := optionsOf(opts)
	if err != nil {
		return nil, err
	}
	t, err := connectTables(ctx, pool, o.schema)
	if err != nil {
		return nil, err
	}
	for _, set := range allSets {
		if err := bringUp(ctx, t, set, o.migrate); err != nil {
			return nil, err
		}
	}
	sink, err := newSettings(ctx, pool, o.limits)
	if err != nil {
		return nil, err
	}
	return &Store{pool: t, notify: !o.quiet, sink: sink}, nil
}

// Close ends the connections that the store has made itself: those for leases, and with [Open] the pool.
func (s *Store) Close() error {
	s.leases.close()
	if s.own {
		s.pool.Close()
	}
	return nil
}

// Pool returns the store's connections.
func (s *Store) Pool() *pgxpool.Pool { return s.pool.Pool }

// columns are those of a job, in statements that call the table j.
var columns = jobsql.Columns("j")

// scan reads the columns, and others before them.
func scan(row pgx.Row, before ...any) (stream.Status, error) {
	var r jobsql.Row[*time.Time]
	err := row.Scan(append(before, r.Dest()...)...)
	return r.Status(utc), err
}

// utc is a time as it was stored; NULL is the zero time.
func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// begin starts every transaction: what the session or the database have as their defaults must not matter.
const begin = `begin isolation level read committed read write`

// once runs one statement in a transaction of its own, in one round trip: a client that freezes leaves no lock behind. each gets the
// rows.
func once(ctx context.Context, pool *tables, sql string, each func(pgx.Row) error, args ...any) (changed int64, err error) {
	batch := &pgx.Batch{}
	batch.Queue(begin)
	batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			if each == nil {
				continue
			}
			if err := each(rows); err != nil {
				return err
			}
		}
		rows.Close()
		changed = rows.CommandTag().RowsAffected()
		return rows.Err()
	})
	batch.Queue(`commit`)
	return changed, send(ctx, pool, batch)
}

// send sends a batch that begins and ends a transaction.
func send(ctx context.Context, pool *tables, batch *pgx.Batch) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return unconnected(pool, err)
	}
	defer conn.Release()
	if err = conn.SendBatch(ctx, pool.qualifyBatch(batch)).Close(); err != nil {
		rollback(ctx, conn.Conn())
	}
	return pool.named(err, "", true)
}

// rollbackTimeout bounds the end of a transaction whose context has ended.
const rollbackTimeout = 5 * time.Second

// rollback ends a transaction that failed. If that fails too, the connection is closed, which ends it as well.
func rollback(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	if conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		return
	}
	if _, err := conn.Exec(ctx, `rollback`); err != nil {
		_ = conn.Close(ctx)
	}
}

// interval is the parameter's number of microseconds.
func interval(parameter string) string {
	return parameter + `::bigint * interval '1 microsecond'`
}

// due sends a notification with the transaction. parameter switches that on.
func due(parameter string) string {
	return `case when ` + parameter + `::boolean then pg_notify('` + NotifyChannel + `', ` + escaped(`j.stream`) + ` || ' ' || ` + escaped(`j.id`) + `)::text end`
}

// escaped escapes a name so that unescaping gives it back. Names hold no space, so these two are all that must be escaped.
func escaped(name string) string { return `replace(replace(` + name + `, '%', '%25'), '+', '%2B')` }

// Submit implements [stream.Store].
func (s *Store) Submit(ctx context.Context, job stream.Job) (stream.Status, error) {
	return s.submit(ctx, job, func(sql string, each func(pgx.Row) error, args ...any) error {
		_, err := once(ctx, s.pool, sql, each, args...)
		return err
	})
}

// SubmitTx is Submit in a transaction of the caller's, in the same database: the job is there, and its notification is sent, if and only if the
// transaction commits.
func (s *Store) SubmitTx(ctx context.Context, tx pgx.Tx, job stream.Job) (stream.Status, error) {
	return s.submit(ctx, job, func(sql string, each func(pgx.Row) error, args ...any) error {
		rows, err := tx.Query(ctx, s.pool.qualify(sql), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := each(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

func (s *Store) submit(ctx context.Context, job stream.Job, run func(sql string, each func(pgx.Row) error, args ...any) error) (stream.Status, error) {
	job, err := jobrule.Job(job)
	if err != nil {
		return stream.Status{}, fmt.Errorf("submit: %w", err)
	}
	var (
		st           stream.Status
		found        bool
		notification *string
		notBefore    *time.Time
		dedupe       = jobsql.DedupeKey(job)
	)
	if !job.NotBefore.IsZero() {
		notBefore = &job.NotBefore
	}
	for {
		err = run(`with j as (
			insert into levada_job (id, stream, target, query, dedupe_key, priority, not_before, on_bad, max_bad, state, created_at, updated_at)
			select $1::text, $2::text, $3::text, $4::bytea, $5::text, $6::bigint, coalesce($7::timestamptz, now()), $8::text, $9::bigint, 'ready', clock_timestamp(), clock_timestamp()
			on conflict do nothing returning *)
			select `+due(`($10::boolean and j.not_before <= clock_timestamp())`)+`, `+columns+` from j`, func(row pgx.Row) error {
			found = true
			st, err = scan(row, &notification)
			return err
		}, job.ID, job.Stream, job.Target, job.Query, dedupe, job.Priority, notBefore, string(job.OnBad), job.MaxBad, s.notify)
		if err != nil || found {
			break
		}
		err = run(`select `+columns+` from levada_job j where j.id = $1::text or j.stream = $3::text and j.dedupe_key = $2::text and j.state <> 'cancelled' order by j.id = $1::text desc limit 1`, func(row pgx.Row) error {
			found = true
			st, err = scan(row)
			return err
		}, job.ID, dedupe, job.Stream)
		st.Existed = true
		// The job that was in the way may have been deleted meanwhile; or the caller's transaction is one that does not see it.
		if err == nil && !found {
			if err = ctx.Err(); err == nil {
				continue
			}
		}
		break
	}
	if err == nil && st.Existed {
		err = jobrule.Same(job, st.Job)
	}
	if err != nil {
		return stream.Status{}, fmt.Errorf("submit: %w", err)
	}
	return st, nil
}

// Claim implements [stream.Store].
func (s *Store) Claim(ctx context.Context, c stream.Claim) ([]stream.Status, error) {
	leases, err := s.leases.open(s.pool)
	if err != nil {
		return nil, err
	}
	if err := jobrule.Claim(c); err != nil {
		return nil, err
	}
	type claimed struct {
		stream.Status
		due time.Time
	}
	var got []claimed
	owner := jobrule.Owner(c.Owner)
	// The two kinds of due jobs have an index each. What is locked and not chosen is free again at once.
	_, err = once(ctx, leases, `with ready as materialized (
			select id, state, priority, not_before as due, owner_incarnation from levada_job
			where state = 'ready' and not_before <= now() and ($1::text[] is null or stream = any ($1::text[]))
			order by priority desc, not_before limit $2::bigint for update skip locked),
		lost as materialized (
			select id, state, priority, lease_until as due, owner_incarnation from levada_job
			where state = 'running' and lease_until <= now() and ($1::text[] is null or stream = any ($1::text[]))
			order by priority desc, lease_until limit $2::bigint for update skip locked),
		chosen as materialized (
			select * from (select * from ready union all select * from lost) both_kinds order by priority desc, due limit $2::bigint)
		update levada_job j set state = 'running', epoch = j.epoch + 1, attempts = j.attempts + 1,
			owner_pod = $3::text, owner_pod_uid = $4::text, owner_container = $5::text, owner_incarnation = $6::text,
			lease_ttl = $7::bigint, lease_until = clock_timestamp() + `+interval(`$7`)+`, claimed_at = clock_timestamp(),
			started_at = coalesce(j.started_at, clock_timestamp()), updated_at = clock_timestamp()
		from chosen where j.id = chosen.id
		returning chosen.due, chosen.state = 'running' and (chosen.owner_incarnation = '' or chosen.owner_incarnation <> $6::text), `+columns, func(row pgx.Row) error {
		var one claimed
		var died bool
		st, err := scan(row, &one.due, &died)
		one.Status, one.Reclaimed = st, died
		got = append(got, one)
		return err
	}, c.Streams, c.Max, owner.Pod, owner.PodUID, owner.Container, owner.Incarnation, c.TTL.Microseconds())
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	slices.SortStableFunc(got, func(a, b claimed) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.due.Compare(b.due))
	})
	var all []stream.Status
	for _, one := range got {
		all = append(all, one.Status)
	}
	return all, nil
}

// leased runs an update of the job whose current lease is l; the update's parameters begin with $3.
func (s *Store) leased(ctx context.Context, l stream.Lease, update string, args ...any) error {
	leases, err := s.leases.open(s.pool)
	if err != nil {
		return err
	}
	changed, err := once(ctx, leases, `with j as (update levada_job set updated_at = clock_timestamp(), `+update+`
		where id = $1::text and epoch = $2::bigint and state = 'running' returning *) select `+due(`($3::boolean and j.state = 'ready' and j.not_before <= clock_timestamp())`)+` from j`,
		nil, append([]any{l.Job, int64(l.Epoch), s.notify}, args...)...)
	if err != nil || changed == 1 {
		return err
	}
	return s.fenced(ctx, l)
}

// fenced says why the lease is not the job's current one.
func (s *Store) fenced(ctx context.Context, l stream.Lease) error {
	leases, err := s.leases.open(s.pool)
	if err != nil {
		return err
	}
	st, err := get(ctx, leases, l.Job)
	return jobsql.Fenced(l, st, err)
}

// Renew implements [stream.Store].
func (s *Store) Renew(ctx context.Context, l stream.Lease, p stream.Progress, ttl time.Duration) error {
	if err := jobrule.TTL("renew", ttl); err != nil {
		return err
	}
	err := s.leased(ctx, l, `lease_ttl = $4::bigint, lease_until = clock_timestamp() + `+interval(`$4`)+`, records = $5::bigint, bytes = $6::bigint, bad = $7::bigint, size = $8::bigint`,
		append([]any{ttl.Microseconds()}, jobsql.Progress(p)...)...)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	return nil
}

// Note implements [stream.Store].
func (s *Store) SaveState(ctx context.Context, l stream.Lease, crash stream.CrashState, retry stream.RetryState) error {
	err := s.leased(ctx, l, `probe = $4::bigint, probe_until = $5::bigint, hand = $6::bigint, deaths = $7::bigint,
		no_progress = $8::bigint, stalled = $9::bigint, denied = $10::bigint, dependent = $11::bigint,
		reason = case when $12::boolean then '' else reason end, last_error = case when $12::boolean then '' else last_error end`,
		jobsql.Noted(crash, retry)...)
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
	err := s.leased(ctx, l, `state = $4::text, lease_until = null, not_before = case when $4::text = 'ready' then clock_timestamp() + `+interval(`$5`)+` else not_before end,
		finished_at = case when $4::text = 'ready' then null else clock_timestamp() end, no_progress = $6::bigint,
		records = $7::bigint, bytes = $8::bigint, bad = $9::bigint, size = $10::bigint, reason = $11::text, last_error = $12::text,
		probe = $13::bigint, probe_until = $14::bigint, hand = $15::bigint, deaths = $16::bigint,
		stalled = $17::bigint, denied = $18::bigint, dependent = $19::bigint`,
		append([]any{string(r.State), r.After.Microseconds()}, jobsql.Given(r)...)...)
	if jobsql.Released(l, r, err, func() (stream.Status, error) { return s.Get(ctx, l.Job) }) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// Expire implements [stream.Store].
func (s *Store) Expire(ctx context.Context, dead stream.ExpireFilter) (int, error) {
	leases, err := s.leases.open(s.pool)
	if err != nil {
		return 0, err
	}
	if err := jobrule.CheckExpire(dead); err != nil {
		return 0, err
	}
	var before *time.Time
	if !dead.ClaimedBefore.IsZero() {
		before = &dead.ClaimedBefore
	}
	// The row's lock is waited for at most for the time of a commit; now() is not later than the claim that comes after it.
	n, err := once(ctx, leases, `with j as (update levada_job set lease_until = now(), updated_at = clock_timestamp()
			where state = 'running' and lease_until > now()
			and ($1::text = '' or owner_pod_uid = $1::text) and ($2::text = '' or owner_incarnation = $2::text) and ($3::text = '' or owner_container in ('', $3::text))
			and ($4::text = '' or owner_incarnation <> $4::text) and ($5::timestamptz is null or claimed_at < $5::timestamptz) returning *)
		select `+due(`$6`)+` from j`, nil, dead.PodUID, dead.Incarnation, dead.Container, dead.ExceptIncarnation, before, s.notify)
	if err != nil {
		return 0, fmt.Errorf("expire: %w", err)
	}
	return int(n), nil
}

// Get implements [stream.Store].
func (s *Store) Get(ctx context.Context, id string) (stream.Status, error) {
	return get(ctx, s.pool, id)
}

func get(ctx context.Context, pool *tables, id string) (stream.Status, error) {
	st, err := scan(pool.QueryRow(ctx, `select `+columns+` from levada_job j where j.id = $1::text`, jobrule.Text(id)))
	return jobsql.Found(id, st, err, pgx.ErrNoRows)
}

// List implements [stream.Store].
func (s *Store) List(ctx context.Context, f stream.Filter) ([]stream.Status, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 1000
	}
	states := make([]string, 0, len(f.States))
	for _, state := range f.States {
		states = append(states, string(state))
	}
	rows, err := s.pool.Query(ctx, `select `+columns+` from levada_job j where (cardinality($1::text[]) = 0 or j.state = any ($1::text[]))
		and (cardinality($2::text[]) = 0 or j.stream = any ($2::text[])) order by j.n desc limit $3::bigint`, states, append([]string{}, f.Streams...), limit)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (stream.Status, error) { return scan(row) })
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	return all, nil
}

// transitions take the time from the server. One that makes a job due takes that of the transaction, which no later claim is before.
var transitions = jobsql.TransitionsIn(jobsql.Dialect{Now: `clock_timestamp()`, Due: `now()`, Greatest: `greatest`})

// change takes a job from one of some states to another.
func (s *Store) change(ctx context.Context, t jobsql.Transition, id string) (st stream.Status, err error) {
	var notification *string
	changed, err := once(ctx, s.pool, `with j as (update levada_job set updated_at = clock_timestamp(), lease_until = null, `+t.Set+` where id = $1::text and state in (`+t.From+`) returning *)
		select `+due(`($2::boolean and j.state = 'ready' and j.not_before <= clock_timestamp())`)+`, `+columns+` from j`, func(row pgx.Row) error {
		st, err = scan(row, &notification)
		return err
	}, jobrule.Text(id), s.notify)
	if err == nil && changed == 0 {
		if st, err = s.Get(ctx, id); err == nil {
			err = jobsql.WrongState(st)
		}
	}
	if sqlState(err) == "23505" { // only Retry of a cancelled job can meet this
		err = jobrule.KeyTaken(id)
	}
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
	leases, err := s.leases.open(s.pool)
	if err != nil {
		return nil, err
	}
	rows, err := leases.Query(ctx, jobsql.OwnersQuery)
	if err != nil {
		return nil, fmt.Errorf("owners: %w", err)
	}
	owners, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o stream.Owner, err error) {
		return o, row.Scan(&o.Pod, &o.PodUID, &o.Container, &o.Incarnation)
	})
	if err != nil {
		return nil, fmt.Errorf("owners: %w", err)
	}
	return owners, nil
}

// Orphans counts the jobs that no claim would ever find, although they are neither final nor paused. There must be none: it is
// for tests and alarms.
func (s *Store) Orphans(ctx context.Context) (n int, err error) {
	err = s.pool.QueryRow(ctx, jobsql.OrphansQuery).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("orphans: %w", err)
	}
	return n, nil
}
