package streamtable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Row is one row of a user's own table, as far as a query returns it.
type Row struct {
	Seq   uint64 // 0 if the query has no column seq
	Key   []byte
	Value []byte
}

// Query reads the rows of a user's own table that belong to a job. The query returns the column seq or the column key of the record that a
// row was made of, or both, and if it has a column value, the record's value. $1 in it is the job's ID.
type Query struct {
	// Columns are those of seq, key and value that the query returns.
	Columns []string
	rows    func(ctx context.Context) iter.Seq2[Row, error]
	close   func() error
}

// Has reports whether the query returns the column.
func (q *Query) Has(column string) bool { return slices.Contains(q.Columns, column) }

// Rows returns the rows, in the order of seq if there is one, or else of key, byte by byte. It runs the query in a transaction that cannot
// write.
func (q *Query) Rows(ctx context.Context) iter.Seq2[Row, error] { return q.rows(ctx) }

// Close frees what the query holds.
func (q *Query) Close() error { return q.close() }

// queryColumns picks the columns to read from those that the query returns.
func queryColumns(found []string) ([]string, error) {
	var use []string
	for _, name := range []string{"seq", "key", "value"} {
		switch n := count(found, name); {
		case n > 1:
			return nil, fmt.Errorf("the query returns the column %s %d times", name, n)
		case n == 1:
			use = append(use, name)
		}
	}
	if len(use) == 0 || use[0] == "value" {
		return nil, fmt.Errorf("the query returns the columns %s: expected seq (the record's number) or key (its key), and optionally value; name them with AS", strings.Join(found, ", "))
	}
	return use, nil
}

func count(all []string, name string) (n int) {
	for _, s := range all {
		if s == name {
			n++
		}
	}
	return n
}

// wrapped makes the query a subquery, so that its own ORDER BY and semicolon do not matter.
func wrapped(query string, columns []string, order string) string {
	return `select ` + strings.Join(columns, ", ") + ` from (` + strings.TrimRight(strings.TrimSpace(query), ";") + "\n) levada_rows order by " + order
}

// reads checks that a statement is a query, before a database is asked: what others would do is refused as well, but in words that say nothing of
// what is expected.
func reads(query string) error {
	rest := strings.TrimSpace(query)
	for { // comments before it
		if after, ok := strings.CutPrefix(rest, "--"); ok {
			_, rest, _ = strings.Cut(after, "\n")
		} else if after, ok := strings.CutPrefix(rest, "/*"); ok {
			_, rest, _ = strings.Cut(after, "*/")
		} else {
			break
		}
		rest = strings.TrimSpace(rest)
	}
	rest = strings.TrimLeft(rest, "( \t\n")
	word := strings.FieldsFunc(rest, func(r rune) bool { return !unicode.IsLetter(r) })
	if len(word) == 0 || len(rest) == 0 || !strings.HasPrefix(rest, word[0]) {
		return fmt.Errorf("%w: it is %.40q", errNotReading, query)
	}
	switch strings.ToLower(word[0]) {
	case "select", "with", "values", "table":
		return nil
	}
	return fmt.Errorf("%w: it begins with %s", errNotReading, strings.ToUpper(word[0]))
}

var errNotReading = errors.New("expected one SELECT that returns seq or key, and nothing that writes; nothing was executed")

// wholeSeq is the number of a record in a column of a type that has fractions, or 0 where it has one: rounded, it would name another record.
const wholeSeq = "case when seq = trunc(seq) then seq::bigint else 0 end"

// OpenPostgresQuery checks a query. The pool stays open at Close.
func OpenPostgresQuery(ctx context.Context, pool *pgxpool.Pool, query, job string) (*Query, error) {
	if err := reads(query); err != nil {
		return nil, err
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	q, err := describePostgres(ctx, conn.Conn().PgConn(), query, job)
	if err != nil {
		return nil, err
	}
	q.pool = pool
	return &Query{Columns: q.columns, close: func() error { return nil }, rows: q.rows}, nil
}

// postgresQuery is a query that the server has described.
type postgresQuery struct {
	pool    *pgxpool.Pool
	columns []string
	sql     string // the query as a subquery, in order
	args    []any
}

// describePostgres asks the server what the query returns, and whether it can be a subquery. Nothing is executed.
func describePostgres(ctx context.Context, conn *pgconn.PgConn, query, job string) (*postgresQuery, error) {
	described, err := conn.Prepare(ctx, "", strings.TrimRight(strings.TrimSpace(query), ";"), nil)
	if err != nil {
		return nil, postgresError(err)
	}
	if len(described.ParamOIDs) > 1 {
		return nil, fmt.Errorf("the query has %d parameters: expected $1, the job's ID, or none", len(described.ParamOIDs))
	}
	q := &postgresQuery{}
	if len(described.ParamOIDs) == 1 {
		q.args = append(q.args, job)
	}
	var names []string
	kinds := map[string]uint32{}
	for _, f := range described.Fields {
		names = append(names, f.Name)
		kinds[f.Name] = f.DataTypeOID
	}
	if q.columns, err = queryColumns(names); err != nil {
		return nil, err
	}
	selected := make([]string, len(q.columns))
	for i, c := range q.columns {
		selected[i] = postgresColumn(c, kinds[c])
	}
	q.sql = wrapped(query, selected, "1")
	if _, err := conn.Prepare(ctx, "", q.sql, nil); err != nil {
		return nil, fmt.Errorf("as a subquery: %w", postgresError(err))
	}
	return q, nil
}

// postgresColumn is a column as a number, or as bytes.
func postgresColumn(name string, kind uint32) string {
	switch {
	case name == "seq" && slices.Contains([]uint32{pgtype.NumericOID, pgtype.Float4OID, pgtype.Float8OID}, kind):
		return strings.ReplaceAll(wholeSeq, "trunc(seq)", "trunc(seq::numeric)")
	case name == "seq":
		return "seq::bigint"
	case kind == pgtype.ByteaOID:
		return name
	}
	return "convert_to(" + name + "::text, 'UTF8')"
}

// rows runs the query in a transaction that cannot write.
func (q *postgresQuery) rows(ctx context.Context) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		fail := func(err error) { yield(Row{}, postgresError(err)) }
		tx, err := q.pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if err != nil {
			fail(err)
			return
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		rows, err := tx.Query(ctx, q.sql, q.args...)
		if err != nil {
			fail(err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			r, err := scanRow(rows, q.columns)
			if err != nil {
				fail(err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}

// scanRow reads the row that a query of either database stands at.
func scanRow(rows interface{ Scan(...any) error }, columns []string) (r Row, err error) {
	var seq *int64
	if err := rows.Scan(r.targets(columns, &seq)...); err != nil {
		return Row{}, err
	}
	return r, r.complete(columns, seq)
}

var errWrites = errors.New("the query writes, and is executed read-only: expected one SELECT that returns seq or key")

func postgresError(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		if e.Code == "25006" || e.Code == "0A000" && strings.Contains(e.Message, "data-modifying") {
			return fmt.Errorf("%w: %s (SQLSTATE %s)", errWrites, e.Message, e.Code)
		}
		return fmt.Errorf("the server refuses the query: %s (SQLSTATE %s)", e.Message, e.Code)
	}
	return err
}

// targets are what a row's columns are read into.
func (r *Row) targets(columns []string, seq **int64) []any {
	var all []any
	for _, c := range columns {
		switch c {
		case "seq":
			all = append(all, seq)
		case "key":
			all = append(all, &r.Key)
		case "value":
			all = append(all, &r.Value)
		}
	}
	return all
}

func (r *Row) complete(columns []string, seq *int64) error {
	if columns[0] != "seq" {
		if r.Key == nil {
			return errors.New("the query returns a row whose key is NULL: expected the key of the record that it was made of")
		}
		return nil
	}
	if seq == nil || *seq < 1 {
		return errors.New("the query returns a row whose seq is NULL, less than 1 or no whole number: expected the number of the record that it was made of")
	}
	r.Seq = uint64(*seq)
	return nil
}

// OpenSQLiteQuery checks a query on the file of a sqlitestore.Store.
func OpenSQLiteQuery(ctx context.Context, path, query, job string) (*Query, error) {
	if err := reads(query); err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dsn := url.URL{Scheme: "file", Path: filepath.ToSlash(absolute), RawQuery: url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(10000)", "query_only(1)"}}.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, err
	}
	query = strings.ReplaceAll(strings.TrimRight(strings.TrimSpace(query), ";"), "$1", "?1")
	var args []any
	if strings.Contains(query, "?") {
		args = append(args, job)
	}
	names, err := sqliteColumns(ctx, db, query, args)
	var columns []string
	if err == nil {
		columns, err = queryColumns(names)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	selected := make([]string, len(columns))
	for i, c := range columns {
		if selected[i] = "cast(" + c + " as blob)"; c == "seq" {
			selected[i] = "case when cast(seq as integer) = seq + 0 then cast(seq as integer) else 0 end" // as wholeSeq
		}
	}
	q := &sqliteQuery{db: db, columns: columns, sql: wrapped(query, selected, "1"), args: args}
	return &Query{Columns: columns, close: db.Close, rows: q.rows}, nil
}

// sqliteQuery is a query on a connection that cannot write.
type sqliteQuery struct {
	db      *sql.DB
	columns []string
	sql     string // the query as a subquery, in order
	args    []any
}

func (q *sqliteQuery) rows(ctx context.Context) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		rows, err := q.db.QueryContext(ctx, q.sql, q.args...)
		if err != nil {
			yield(Row{}, fmt.Errorf("SQLite refuses the query: %w", err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			r, err := scanRow(rows, q.columns)
			if err != nil {
				yield(Row{}, err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(Row{}, err)
		}
	}
}

func sqliteColumns(ctx context.Context, db *sql.DB, query string, args []any) ([]string, error) {
	rows, err := db.QueryContext(ctx, `select * from (`+query+"\n) limit 0", args...)
	if err != nil {
		return nil, fmt.Errorf("SQLite refuses the query: %w", err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	return names, errors.Join(err, rows.Err())
}
