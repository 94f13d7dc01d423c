package pgsource

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/pooler"
)

// Keyset makes a Source of a query over a live table, page by page in the order of the key. It holds no connection between pages
// (unless it waits with Notify), and no transaction ever. A row that is deleted before it is read is not part of the stream; one
// that is updated is read as it is then.
func Keyset(pool *pgxpool.Pool, q Query) (stream.Source, error) {
	q = q.withDefaults()
	if err := q.checkKeyset(); err != nil {
		return nil, fmt.Errorf("pgsource.Keyset: %w", err)
	}
	return &keyset{pool: &connections{Pool: pool}, q: q}, nil
}

type keyset struct {
	pool *connections
	q    Query
	// listens: the connections were checked for a pooler, and can listen.
	listens atomic.Bool
}

// Schema implements [stream.Schema].
func (s *keyset) Schema(stream.Query) string { return s.q.schema() }

// The timeline is that of the log that is being written: the control file learns of a promotion only at the next checkpoint.
const askGeneration = `select (pg_control_system()).system_identifier::text, (select oid::text from pg_database where datname = current_database()),
	case when pg_is_in_recovery() then (pg_control_checkpoint()).timeline_id::text
	else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int::text end`

// Generation implements [stream.Generation].
func (s *keyset) Generation(ctx context.Context, _ stream.Query) (string, error) {
	if s.q.Generation != nil {
		return s.q.Generation(ctx)
	}
	if err := s.pool.check(ctx); err != nil {
		return "", err
	}
	var system, database, timeline string
	if err := s.pool.QueryRow(ctx, askGeneration).Scan(&system, &database, &timeline); err != nil {
		return "", fmt.Errorf("asking which database this is (Query.Generation can say it instead): %w", err)
	}
	if s.q.SurvivesPromotion {
		timeline = "any"
	}
	return fmt.Sprintf("postgres system %s database %s timeline %s", system, database, timeline), nil
}

func (s *keyset) Open(ctx context.Context, q stream.Query) (_ stream.Cursor, err error) {
	if err := s.pool.check(ctx); err != nil {
		return nil, err
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	b, err := s.q.describe(ctx, conn, q.Params)
	if err != nil {
		conn.Release()
		return nil, err
	}
	c := &cursor{bound: b, pool: s.pool.Pool, limit: min(s.q.Page, firstPage)}
	if err = c.start(ctx, conn, q.After); err != nil {
		conn.Release()
		return nil, err
	}
	if s.q.Notify == "" {
		conn.Release()
		return c, nil
	}
	if err := s.listen(ctx, conn); err != nil {
		conn.Release()
		return nil, err
	}
	c.listening = conn
	return c, nil
}

func (s *keyset) listen(ctx context.Context, conn *pgxpool.Conn) error {
	if err := s.canListen(ctx, conn.Conn()); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, "listen "+pgx.Identifier{s.q.Notify}.Sanitize())
	return err
}

// canListen returns an error for connections whose sessions a pooler shares among its clients.
func (s *keyset) canListen(ctx context.Context, conn *pgx.Conn) error {
	if s.listens.Load() {
		return nil
	}
	shared, err := pooler.SharesSessions(ctx, conn)
	switch {
	case shared:
		return fmt.Errorf("pgsource: Notify %q does not work through a connection pooler in transaction mode (PgBouncer, pool_mode = transaction): "+
			"give the source a pool that leads to the server directly, or leave Notify out: Poll finds the rows", s.q.Notify)
	case err != nil:
		return fmt.Errorf("check the connection for a pooler: %w", err)
	}
	s.listens.Store(true)
	return nil
}

const (
	firstPage = 64 // rows, as long as their size is not known
	// nullsEvery is how often a stream that follows looks for keys that are NULL: that reads the table, where no index serves it.
	nullsEvery = time.Minute
)

// cursor walks a bound query, a page at a time. Between pages it holds no connection and no transaction, unless it listens: a reader that takes hours
// would keep Postgres from removing old rows.
type cursor struct {
	*bound
	pool *pgxpool.Pool
	// listening is the connection that gets notifications of new rows, with Notify; nil without. The cursor holds it until Close.
	listening *pgxpool.Conn

	// after is where the next page begins: the last key of the page, or a bookmark; nil at the start.
	// read is the last key that Next returned, or what after was at the start. Invariant: read <= after, and both only grow.
	after, read []byte
	// rows is the page, and at is how many of it Next has returned. Invariant: at <= len(rows); the keys of rows grow strictly and are greater than
	// read from at on. The last one is after.
	rows    []row
	at      int
	current row // the last one that Next returned; it is valid until the next call
	// memory is what the keys and values of rows point into. It is written over by the next page, so a page is read only when at is len(rows).
	memory []byte
	// limit is how many rows the next page has at most: as many as fit into PageBytes at the mean size of the rows of this one.
	limit int

	// horizon and end are transaction numbers. All transactions below horizon have ended, so no row below it can appear any more. The stream ends
	// with the rows below end; 0: it follows. Invariant: horizon only grows, and horizon <= end unless end is 0.
	horizon, end uint64
	// complete: all rows below horizon (static: all rows) are read or in rows.
	complete bool
	nulls    time.Time // when keys that are NULL were looked for
	err      error     // returned by Next from now on: an error is final unless the context has ended
}

// row is one row, in memory of the cursor.
type row struct {
	key    []byte
	value  []byte   // nil if it is NULL
	values [][]byte // with Encode: all columns
}

// start checks the position, and finds out where the stream ends.
func (c *cursor) start(ctx context.Context, conn *pgxpool.Conn, after []byte) error {
	if len(after) > 0 {
		if _, _, err := c.position(after); err != nil {
			return err
		}
		c.after, c.read = bytes.Clone(after), bytes.Clone(after)
	}
	if err := c.lookForNulls(ctx, conn); err != nil {
		return err
	}
	if c.Horizon == "" {
		return nil
	}
	return c.askHorizon(ctx, conn)
}

// position takes a key apart. The key of a bookmark holds the horizon alone.
func (c *cursor) position(key []byte) (columns []keyColumn, raws [][]byte, err error) {
	kinds, raws, err := decodeKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: position %x: %w", stream.ErrQueryChanged, key, err)
	}
	if len(kinds) != len(c.keys) && (c.Horizon == "" || len(kinds) != 1) {
		return nil, nil, fmt.Errorf("%w: the position is a key of %d columns, and the query has %d", stream.ErrQueryChanged, len(kinds), len(c.keys))
	}
	for i, k := range kinds {
		if k != c.keys[i].kind {
			return nil, nil, fmt.Errorf("%w: the position has a %s for key column %q, which is a %s now", stream.ErrQueryChanged, sqlType[k], c.keys[i].name, sqlType[c.keys[i].kind])
		}
	}
	return c.keys[:len(kinds)], raws, nil
}

func (c *cursor) lookForNulls(ctx context.Context, conn *pgxpool.Conn) error {
	if !c.nulls.IsZero() && time.Since(c.nulls) < nullsEvery && c.Follow {
		return nil
	}
	c.nulls = time.Now()
	return c.refuseNulls(ctx, conn)
}

// askHorizon moves the horizon. What is below xmin has ended, and if it committed, every later statement sees it. What is at or
// above xmax had not begun to write when end was asked for.
func (c *cursor) askHorizon(ctx context.Context, conn *pgxpool.Conn) error {
	var low, high string
	if err := conn.QueryRow(ctx, "select pg_snapshot_xmin(s)::text, pg_snapshot_xmax(s)::text from pg_current_snapshot() s").Scan(&low, &high); err != nil {
		return fmt.Errorf("the horizon: %w", err)
	}
	xmin, err := strconv.ParseUint(low, 10, 64)
	if err != nil {
		return fmt.Errorf("the horizon: %w", err)
	}
	if c.end == 0 && !c.Follow {
		if c.end, err = strconv.ParseUint(high, 10, 64); err != nil {
			return fmt.Errorf("the horizon: %w", err)
		}
	}
	if c.end != 0 {
		xmin = min(xmin, c.end)
	}
	if xmin > c.horizon {
		c.horizon, c.complete = xmin, false
	}
	return nil
}

func (c *cursor) Next(ctx context.Context) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	for c.at == len(c.rows) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		moved, err := c.more(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, err // the cursor stands where it stood
		case err != nil:
			c.err = err
			return nil, err
		case moved:
			return nil, nil // there is a bookmark
		}
	}
	c.current = c.rows[c.at]
	c.at++
	c.read = append(c.read[:0], c.current.key...)
	return c.current.key, nil
}

// Bookmark implements [stream.Bookmark].
func (c *cursor) ProgressKey() []byte {
	if c.at == len(c.rows) && bytes.Compare(c.after, c.read) > 0 {
		return c.after
	}
	return c.read
}

// more gets the next page, or waits a while. It reports whether it has looked at all rows up to a new bookmark.
func (c *cursor) more(ctx context.Context) (moved bool, err error) {
	if c.complete && c.Horizon != "" && c.horizon != c.end {
		before := c.horizon
		if err := c.with(ctx, func(conn *pgxpool.Conn) error { return c.askHorizon(ctx, conn) }); err != nil {
			return false, err
		}
		if c.horizon == before {
			return false, c.wait(ctx)
		}
	}
	if c.complete {
		return false, c.with(ctx, func(conn *pgxpool.Conn) error {
			if err := c.refuseNulls(ctx, conn); err != nil {
				return err
			}
			return io.EOF
		})
	}
	err = c.with(ctx, func(conn *pgxpool.Conn) error {
		if err := c.page(ctx, conn); err != nil {
			return err
		}
		if c.complete && c.Follow {
			return c.lookForNulls(ctx, conn)
		}
		return nil
	})
	if err != nil || !c.complete || c.Horizon == "" || c.at < len(c.rows) {
		return false, err
	}
	// Nothing is left below the horizon: rows to come have its number or a greater one, and this key is less than all of theirs.
	mark := binary.BigEndian.AppendUint64([]byte{byte(kindXID)}, c.horizon)
	if bytes.Compare(mark, c.after) > 0 {
		c.after = mark
		return true, nil
	}
	return false, nil
}

// with calls f with a connection.
func (c *cursor) with(ctx context.Context, f func(*pgxpool.Conn) error) error {
	if c.listening != nil {
		return f(c.listening)
	}
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return f(conn)
}

func (c *cursor) wait(ctx context.Context) error {
	timed, cancel := context.WithTimeout(ctx, c.Poll)
	defer cancel()
	if c.listening == nil {
		<-timed.Done()
	} else if _, err := c.listening.Conn().WaitForNotification(timed); err != nil && timed.Err() == nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// statement is the SQL of a page. It begins with the last row that was read, so that a second row with the same key is noticed; and
// it asks for one row more than the limit, to know whether there are more.
func (c *cursor) statement() (sql string, values [][]byte, formats []int16, err error) {
	var order, conditions []string
	for _, k := range c.keys {
		order = append(order, k.sql())
	}
	values = append(values, c.params...)
	formats = make([]int16, len(values), len(values)+len(c.keys)+1)
	add := func(raw []byte, sqlType string) string {
		values, formats = append(values, raw), append(formats, pgtype.BinaryFormatCode)
		return fmt.Sprintf("$%d::%s", len(values), sqlType)
	}
	if c.after != nil {
		columns, raws, err := c.position(c.after)
		if err != nil {
			return "", nil, nil, err
		}
		var left, right []string
		for i, k := range columns {
			left = append(left, k.sql())
			right = append(right, add(raws[i], sqlType[k.kind]))
		}
		conditions = append(conditions, fmt.Sprintf("(%s) >= (%s)", strings.Join(left, ", "), strings.Join(right, ", ")))
	}
	if c.Horizon != "" {
		conditions = append(conditions, c.keys[0].sql()+" < "+add(binary.BigEndian.AppendUint64(nil, c.horizon), "xid8"))
	}
	var s strings.Builder
	s.WriteString("select " + c.selected() + " from " + c.from())
	if len(conditions) > 0 {
		s.WriteString(" where " + strings.Join(conditions, " and "))
	}
	fmt.Fprintf(&s, " order by %s limit %d", strings.Join(order, ", "), c.limit+2)
	return s.String(), values, formats, nil
}

// selected are the columns of a page: those of the key, and then what the value is made of.
func (c *cursor) selected() string {
	var s strings.Builder
	for _, k := range c.keys {
		s.WriteString("q." + pgx.Identifier{k.name}.Sanitize() + ", ")
	}
	switch {
	case c.Encode != nil:
		s.WriteString("q.*")
	case c.bound.Value != "":
		s.WriteString("q." + pgx.Identifier{c.bound.Value}.Sanitize())
	default:
		s.WriteString("row_to_json(q.*)")
	}
	return s.String()
}

// resultFormats asks for keys, bytea and whatever Encode's types prefer in binary form.
func (c *cursor) resultFormats() []int16 {
	var formats []int16
	for range c.keys {
		formats = append(formats, pgtype.BinaryFormatCode)
	}
	switch {
	case c.Encode != nil:
		for i, f := range c.fields {
			code := c.types.FormatCodeForOID(f.DataTypeOID)
			c.fields[i].Format = code
			formats = append(formats, code)
		}
	case c.bound.Value != "":
		f, _ := c.field(c.bound.Value)
		if f.DataTypeOID == pgtype.ByteaOID {
			return append(formats, pgtype.BinaryFormatCode)
		}
		formats = append(formats, pgtype.TextFormatCode)
	default:
		formats = append(formats, pgtype.TextFormatCode)
	}
	return formats
}

// page reads the next rows. When it returns an error, the cursor stands where it stood.
func (c *cursor) page(ctx context.Context, conn *pgxpool.Conn) error {
	sql, values, formats, err := c.statement()
	if err != nil {
		return err
	}
	result := conn.Conn().PgConn().ExecParams(ctx, sql, values, nil, formats, c.resultFormats())
	rows, memory, last := c.rows[:0], c.memory[:0], c.after
	complete, skipped := true, false
	var failed error
	for result.NextRow() {
		if failed != nil || !complete {
			continue // Postgres sends the rest anyway
		}
		r, m, err := c.row(memory, result.Values())
		memory = m
		switch {
		case err != nil:
			failed = err
		case !skipped && len(rows) == 0 && bytes.Equal(r.key, last):
			skipped = true // this is the row that the page begins after
		case bytes.Compare(r.key, last) <= 0:
			failed = c.orderError(r.key, last)
		case len(rows) == c.limit || len(rows) > 0 && len(memory) > 2*c.PageBytes:
			complete = false
		default:
			rows, last = append(rows, r), r.key
		}
	}
	_, err = result.Close()
	if err = permanent(err); err != nil {
		return fmt.Errorf("reading a page: %w", err)
	}
	if failed != nil {
		return failed
	}
	if n := len(rows); n > 0 {
		c.after = bytes.Clone(rows[n-1].key)
		c.limit = min(c.Page, max(firstPage/4, c.PageBytes/(len(memory)/n+1)))
	}
	c.rows, c.at, c.memory, c.complete = rows, 0, memory, complete
	return nil
}

func (c *cursor) orderError(key, last []byte) error {
	if bytes.Equal(key, last) {
		return stream.Halt(fmt.Errorf("%w: two rows have the key %q; add columns to Key (%q) until it is unique", stream.ErrOrder, key, c.Key))
	}
	return stream.Halt(fmt.Errorf("%w: the database gave a row with key %q after one with %q", stream.ErrOrder, key, last))
}

// row copies a row into memory, and makes its key.
func (c *cursor) row(memory []byte, raw [][]byte) (r row, _ []byte, err error) {
	start := len(memory)
	for i, k := range c.keys {
		if raw[i] == nil {
			return r, memory, nullKey(k.name)
		}
		next, err := appendColumn(memory, k.kind, raw[i])
		if err != nil {
			return r, memory, fmt.Errorf("key column %q: %w", k.name, err)
		}
		memory = next
	}
	r.key = memory[start:len(memory):len(memory)]
	copied := func(value []byte) []byte {
		if value == nil {
			return nil
		}
		start := len(memory)
		memory = append(memory, value...)
		return memory[start:len(memory):len(memory)]
	}
	if c.Encode == nil {
		r.value = copied(raw[len(c.keys)])
		return r, memory, nil
	}
	r.values = make([][]byte, 0, len(raw)-len(c.keys))
	for _, value := range raw[len(c.keys):] {
		r.values = append(r.values, copied(value))
	}
	return r, memory, nil
}

func (c *cursor) Value(dst []byte) ([]byte, error) {
	if c.Encode != nil {
		return c.Encode(dst, encodable{c.bound, c.current.values})
	}
	if c.current.value == nil {
		return dst, stream.Skip(fmt.Errorf("column %q is NULL in the row with key %q", c.bound.Value, c.current.key))
	}
	return append(dst, c.current.value...), nil
}

func (c *cursor) Close() error {
	if c.listening == nil {
		return nil
	}
	conn := c.listening
	c.listening = nil
	defer conn.Release() // closes it if it is broken
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := conn.Exec(ctx, "unlisten *"); err != nil {
		conn.Conn().Close(ctx) // the pool must not get it back while it listens
	}
	return nil
}

// encodable is a row as Encode gets it.
type encodable struct {
	*bound
	values [][]byte
}

func (r encodable) FieldDescriptions() []pgconn.FieldDescription { return r.fields }
func (r encodable) RawValues() [][]byte                          { return r.values }

func (r encodable) Scan(dest ...any) error {
	return pgx.ScanRow(r.types, r.fields, r.values, dest...)
}

func (r encodable) Values() ([]any, error) {
	values := make([]any, len(r.values))
	for i, raw := range r.values {
		if raw == nil {
			continue
		}
		field := r.fields[i]
		t, ok := r.types.TypeForOID(field.DataTypeOID)
		if !ok {
			values[i] = string(raw) // asked for as text
			continue
		}
		var err error
		if values[i], err = t.Codec.DecodeValue(r.types, field.DataTypeOID, field.Format, raw); err != nil {
			return nil, fmt.Errorf("column %q: %w", field.Name, err)
		}
	}
	return values, nil
}

var _ pgx.CollectableRow = encodable{}
