package pgsource

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/sqlstate"
)

// Query says which rows are records, and in which order.
type Query struct {
	// Table or SQL: one of them. Table is a table's or view's name, with its schema before a dot if need be. SQL is a SELECT, without
	// LIMIT; its order does not count (but see Snapshot). Each column that is named below must be in its result, under that name.
	Table string
	SQL   string
	// Params are the names of SQL's parameters, $1 first, for jobs whose parameters are a JSON object. Jobs whose parameters are a
	// JSON array give them by position. Strings, numbers and booleans are given to Postgres as text and read by it as the
	// parameter's type; null is NULL; arrays and objects are given as JSON.
	Params []string

	// Key are the columns of the order. Together they must be unique, and none may be NULL. Their types may be int2, int4, int8,
	// text, varchar, bytea, uuid, timestamp, timestamptz, date, bool and xid8. Texts are ordered byte by byte (collation "C"), and an
	// index that serves the order must be too.
	Key []string
	// Horizon is the column, of type xid8, that holds the number of the transaction which inserted the row:
	//
	//	alter table t add column xid xid8 not null default pg_current_xact_id();
	//	create index on t (xid, id);
	//
	// It becomes the first column of the key, and rows are read once all transactions with smaller numbers have ended, so none is
	// passed over. A transaction that writes and stays open holds the stream up, in whatever database of the server it is.
	// Writers must have synchronous_commit on. A row that is updated keeps its place if the column keeps its value.
	Horizon string
	// Static says instead that no row appears, disappears or changes while jobs read. If that is not true, rows are lost.
	Static bool

	// Value is the column that is the record's value: a bytea as it is, other types as text. A row in which it is NULL becomes a
	// bad record. If both Value and Encode are empty, the value is the whole row as JSON (row_to_json).
	Value string
	// Encode makes the value of a row, which may be read with Scan, or with pgx.RowToStructByName and its like. It appends to dst. Its
	// errors and panics mean what those of a Cursor's Value do. It may be called concurrently.
	Encode func(dst []byte, row pgx.CollectableRow) ([]byte, error)

	// Page is how many rows are read by one statement at most, default 1000; fewer if they are large.
	Page int
	// PageBytes is how large a page should be, default 1 MiB. A cursor holds up to twice that, and one row more.
	PageBytes int

	// Follow makes the stream wait for more rows at the end, indefinitely. It needs a Horizon. Without it, the stream ends with the rows of
	// all transactions that had begun to write when it was opened, and waits for those that have not ended.
	Follow bool
	// Poll is how often a stream that waits looks for more. Default 250 ms.
	Poll time.Duration
	// Notify is a channel on which writers, or a trigger, call pg_notify: a stream that follows then looks at once. Each such
	// stream holds a connection of the pool.
	Notify string

	// Generation, if not nil, names the life of the database in place of the system identifier, timeline and database oid, where
	// the functions that tell those are not allowed.
	Generation func(ctx context.Context) (string, error)
	// SurvivesPromotion leaves the timeline out of the generation, so that positions stay valid when a standby is promoted. Set it only
	// where a promotion loses no committed transaction (synchronous replication). A point-in-time recovery then goes unnoticed.
	SurvivesPromotion bool

	// KeepFor is how long a Snapshot stays after it was last used. Default 7 days; negative: until Drop.
	KeepFor time.Duration
}

func (q Query) withDefaults() Query {
	q.Page = cmp.Or(q.Page, 1000)
	q.PageBytes = cmp.Or(q.PageBytes, 1<<20)
	q.Poll = cmp.Or(q.Poll, 250*time.Millisecond)
	q.KeepFor = cmp.Or(q.KeepFor, 7*24*time.Hour)
	q.SQL = strings.TrimRight(q.SQL, "; \t\r\n")
	return q
}

func (q Query) check() error {
	switch {
	case (q.Table == "") == (q.SQL == ""):
		return errors.New("set either Table or SQL")
	case q.Table != "" && len(q.Params) > 0:
		return errors.New("a Table has no Params; use SQL")
	case q.Value != "" && q.Encode != nil:
		return errors.New("set Value or Encode, not both")
	case q.Page < 1 || q.PageBytes < 1 || q.Poll < 0:
		return fmt.Errorf("Page (%d) and PageBytes (%d) must be positive, and Poll (%v) not negative", q.Page, q.PageBytes, q.Poll)
	}
	for i, name := range q.Key {
		if name == "" || slices.Contains(q.Key[:i], name) || name == q.Horizon {
			return fmt.Errorf("column %q of Key is empty or named twice", name)
		}
	}
	return nil
}

func (q Query) checkKeyset() error {
	switch {
	case len(q.Key) == 0:
		return errors.New("Key names no column; name those whose values together are unique")
	case q.Horizon == "" && !q.Static:
		return errors.New("set Horizon to the column of type xid8 that holds the inserting transaction's number (see its comment), or rows that are " +
			"committed late would be lost; or set Static if the rows do not change while they are read")
	case q.Horizon != "" && q.Static:
		return errors.New("set Horizon or Static, not both")
	case q.Follow && q.Horizon == "":
		return errors.New("Follow needs a Horizon")
	case q.Notify != "" && !q.Follow:
		return errors.New("Notify is only for streams that Follow")
	}
	return q.check()
}

// schema is all of the query that the order and content of the records depend on, but for the types of the key, which each key holds.
func (q Query) schema() string {
	return fmt.Sprintf("postgres 1 table=%q sql=%q params=%q key=%q horizon=%q value=%q encode=%t", q.Table, q.SQL, q.Params, q.Key, q.Horizon, q.Value, q.Encode != nil)
}

// from is the query as an item of a FROM clause.
func (q Query) from() string {
	if q.Table != "" {
		return pgx.Identifier(strings.Split(q.Table, ".")).Sanitize() + " as q"
	}
	return "(\n" + q.SQL + "\n) as q" // the newline ends a comment
}

// bind turns a job's parameters into the SQL parameters, in text form.
func (q Query) bind(params []byte) ([][]byte, error) {
	params = bytes.TrimSpace(params)
	if len(params) == 0 {
		if len(q.Params) > 0 {
			return nil, fmt.Errorf("the job has no parameters; expected a JSON object with %q", q.Params)
		}
		return nil, nil
	}
	given, err := decodeParams(params)
	if err != nil {
		return nil, err
	}
	var list []any
	switch given := given.(type) {
	case []any:
		list = given
	case map[string]any:
		if list, err = q.byName(given); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the job's parameters are %.100q; expected a JSON array or object", params)
	}
	texts := make([][]byte, len(list))
	for i, value := range list {
		if texts[i], err = paramText(value); err != nil {
			return nil, err
		}
	}
	return texts, nil
}

// decodeParams reads one JSON value. Numbers stay text: a float64 would not hold each bigint.
func decodeParams(params []byte) (given any, err error) {
	d := json.NewDecoder(bytes.NewReader(params))
	d.UseNumber()
	if err = d.Decode(&given); err == nil {
		if _, e := d.Token(); e != io.EOF {
			err = errors.New("something follows the first value")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the job's parameters %.100q are not JSON: %w", params, err)
	}
	return given, nil
}

// byName puts named parameters into the order of the query's. One that the query does not have is an error: it would be ignored silently.
func (q Query) byName(given map[string]any) (list []any, err error) {
	for _, name := range q.Params {
		value, ok := given[name]
		if !ok {
			return nil, fmt.Errorf("the job's parameters lack %q; expected are %q", name, q.Params)
		}
		list = append(list, value)
	}
	for name := range given {
		if !slices.Contains(q.Params, name) {
			return nil, fmt.Errorf("the query has no parameter %q of the job's; expected are %q", name, q.Params)
		}
	}
	return list, nil
}

// paramText is a parameter as Postgres reads it; nil is NULL.
func paramText(value any) ([]byte, error) {
	switch value := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []byte(value), nil
	case json.Number:
		return []byte(value), nil
	}
	return json.Marshal(value)
}

// permanent marks errors of a statement that no later attempt would succeed with: a value that cannot be read, or the syntax.
func permanent(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (strings.HasPrefix(pg.Code, "22") || pg.Code == "42601" || pg.Code == "42P02") {
		return stream.Halt(err)
	} else if ok {
		switch class := sqlstate.Of(pg.Code); class {
		case sqlstate.Privilege:
			return fmt.Errorf("%w: %s", err, sqlstate.Advice(class, "the producer's role", false))
		case sqlstate.Schema:
			return fmt.Errorf("%w: %s", err, sqlstate.Advice(class, "the producer's database", false))
		}
	}
	return err
}

// bound is a query whose parameters are known and whose columns the database has described.
type bound struct {
	Query
	params [][]byte                  // the job's, in text form; nil is NULL
	fields []pgconn.FieldDescription // of all columns of the query, in its order
	// keys are the columns of the order: the horizon's first, if there is one. Their kinds are part of each position, so a position of other kinds is refused.
	keys  []keyColumn
	types *pgtype.Map // a copy of this cursor's own, since a pgtype.Map is not safe for concurrent use; only with Encode
	sure  bool        // the database makes sure that no key is NULL: there is nothing to look for
}

type keyColumn struct {
	name string
	kind kind
}

// sql is the column in SQL, with the order that positions have.
func (k keyColumn) sql() string {
	name := "q." + pgx.Identifier{k.name}.Sanitize()
	if k.kind == kindText {
		return name + ` collate "C"`
	}
	return name
}

// describe asks the database what the query's columns are.
func (q Query) describe(ctx context.Context, conn *pgxpool.Conn, params []byte) (*bound, error) {
	texts, err := q.bind(params)
	if err != nil {
		return nil, stream.Halt(err)
	}
	d, err := conn.Conn().PgConn().Prepare(ctx, "", "select * from "+q.from(), nil)
	if err != nil {
		return nil, permanent(fmt.Errorf("the query: %w", err))
	}
	if len(d.ParamOIDs) != len(texts) {
		return nil, stream.Halt(fmt.Errorf("the query has %d parameters, and the job gives %d", len(d.ParamOIDs), len(texts)))
	}
	b := &bound{Query: q, params: texts, fields: d.Fields}
	if err := b.findKeys(conn); err != nil {
		return nil, err
	}
	if q.Value != "" {
		if _, err := b.field(q.Value); err != nil {
			return nil, err
		}
	}
	if q.Encode != nil {
		b.types = conn.Conn().TypeMap().Copy()
	}
	return b, b.askNulls(ctx, conn)
}

// findKeys finds the columns of the key: the horizon's first, if there is one.
func (b *bound) findKeys(conn *pgxpool.Conn) error {
	names := b.Key
	if b.Horizon != "" {
		names = append([]string{b.Horizon}, b.Key...)
	}
	for _, name := range names {
		field, err := b.field(name)
		if err != nil {
			return err
		}
		k, ok := kindOf[field.DataTypeOID]
		if !ok {
			return stream.Halt(fmt.Errorf("the key column %q has type %s, whose order bytes cannot keep; cast it to one of int8, text, bytea, uuid, timestamp, timestamptz, date or bool",
				name, typeName(conn, field.DataTypeOID)))
		}
		if name == b.Horizon && k != kindXID {
			return stream.Halt(fmt.Errorf("the horizon column %q has type %s; expected xid8, filled by default pg_current_xact_id()", name, typeName(conn, field.DataTypeOID)))
		}
		b.keys = append(b.keys, keyColumn{name, k})
	}
	return nil
}

func typeName(conn *pgxpool.Conn, oid uint32) string {
	if t, ok := conn.Conn().TypeMap().TypeForOID(oid); ok {
		return t.Name
	}
	return fmt.Sprintf("with oid %d", oid)
}

func (b *bound) field(name string) (found pgconn.FieldDescription, err error) {
	n := 0
	for _, f := range b.fields {
		if f.Name == name {
			found = f
			n++
		}
	}
	if n != 1 {
		return found, stream.Halt(fmt.Errorf("the query has %d columns with the name %q, expected 1", n, name))
	}
	return found, nil
}

// askNulls finds out whether NULLs are ruled out by the table itself.
func (b *bound) askNulls(ctx context.Context, conn *pgxpool.Conn) error {
	if b.Table == "" || len(b.keys) == 0 {
		return nil
	}
	var table uint32
	var columns []int16
	for _, k := range b.keys {
		f, _ := b.field(k.name)
		table = f.TableOID
		columns = append(columns, int16(f.TableAttributeNumber))
	}
	return conn.QueryRow(ctx, `select count(*) = $3 from pg_attribute a join pg_class c on c.oid = a.attrelid
		where a.attrelid = $1 and a.attnum = any($2) and a.attnotnull and c.relkind in ('r', 'p')`, table, columns, len(columns)).Scan(&b.sure)
}

// refuseNulls looks for rows whose key has a NULL: no comparison finds them, so they would be lost silently.
func (b *bound) refuseNulls(ctx context.Context, conn *pgxpool.Conn) error {
	if b.sure || len(b.keys) == 0 {
		return nil
	}
	var is, columns []string
	for _, k := range b.keys {
		column := "q." + pgx.Identifier{k.name}.Sanitize()
		is = append(is, column+" is null")
		columns = append(columns, k.name)
	}
	r := conn.Conn().PgConn().ExecParams(ctx, "select "+strings.Join(is, ", ")+" from "+b.from()+" where "+strings.Join(is, " or ")+" limit 1", b.params, nil, nil, nil).Read()
	if r.Err != nil {
		return permanent(fmt.Errorf("looking for keys that are NULL: %w", r.Err))
	}
	if len(r.Rows) == 0 {
		return nil
	}
	for i, isNull := range r.Rows[0] {
		if string(isNull) == "t" {
			return nullKey(columns[i])
		}
	}
	return nil
}

func nullKey(column string) error {
	return stream.Halt(fmt.Errorf("%w: column %q of the key is NULL in a row, which has no place in the order then; make the column NOT NULL, or exclude such rows in the SQL", stream.ErrOrder, column))
}
