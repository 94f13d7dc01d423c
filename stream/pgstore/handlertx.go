package pgstore

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// handlerTx is the transaction as handlers get it. It begins with the handler's first statement: what a handler does before, such as asking another
// service, keeps no transaction waiting, and the limits of transactions do not count it.
type handlerTx struct {
	ctx   context.Context // of the handler, for what has none of its own
	conn  *pgx.Conn
	begin string
	tx    pgx.Tx    // nil until it has begun
	began time.Time // when it did
	err   error     // why it could not
	ended bool      // the handler has tried to end it
	// statement is the last one that the handler has sent by itself, which an error is about; empty: it was a batch, or none.
	statement string
}

// start begins the transaction, once.
func (t *handlerTx) start(ctx context.Context) error {
	if t.tx != nil || t.err != nil {
		return t.err
	}
	t.began = time.Now()
	t.tx, t.err = t.conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: t.begin})
	return t.err
}

func (t *handlerTx) Commit(context.Context) error   { t.ended = true; return errEnded }
func (t *handlerTx) Rollback(context.Context) error { t.ended = true; return errEnded }

func (t *handlerTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := t.start(ctx); err != nil {
		return nil, err
	}
	t.statement = ""
	return t.tx.Begin(ctx)
}

func (t *handlerTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	if err := t.start(ctx); err != nil {
		return 0, err
	}
	n, err := t.tx.CopyFrom(ctx, table, columns, rows)
	if err != nil {
		t.statement = "copy " + table.Sanitize() + " (" + strings.Join(columns, ", ") + ") from stdin"
	}
	return n, err
}

func (t *handlerTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if err := t.start(ctx); err != nil {
		return nil, err
	}
	t.statement = sql
	return t.tx.Prepare(ctx, name, sql)
}

func (t *handlerTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := t.start(ctx); err != nil {
		return pgconn.CommandTag{}, err
	}
	t.statement = sql
	return t.tx.Exec(ctx, sql, args...)
}

func (t *handlerTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := t.start(ctx); err != nil {
		return failed{err}, err // as pgx does: rows that hold the error
	}
	t.statement = sql
	return t.tx.Query(ctx, sql, args...)
}

func (t *handlerTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := t.start(ctx); err != nil {
		return failed{err}
	}
	t.statement = sql
	return t.tx.QueryRow(ctx, sql, args...)
}

func (t *handlerTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := t.start(ctx); err != nil {
		return failedBatch{err}
	}
	t.statement = ""
	return t.tx.SendBatch(ctx, b)
}

// LargeObjects and Conn give out what works on the connection directly, so the transaction has to have begun. If it could not, the sink fails the
// commit whatever the handler returns.
func (t *handlerTx) LargeObjects() pgx.LargeObjects {
	if err := t.start(t.ctx); err != nil {
		return pgx.LargeObjects{}
	}
	return t.tx.LargeObjects()
}

func (t *handlerTx) Conn() *pgx.Conn {
	_ = t.start(t.ctx) // kept in err
	return t.conn
}

// failed is the result of a statement before which the transaction could not begin.
type failed struct{ err error }

func (f failed) Scan(...any) error                            { return f.err }
func (f failed) Close()                                       {}
func (f failed) Err() error                                   { return f.err }
func (f failed) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (f failed) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (f failed) Next() bool                                   { return false }
func (f failed) Values() ([]any, error)                       { return nil, f.err }
func (f failed) RawValues() [][]byte                          { return nil }
func (f failed) Conn() *pgx.Conn                              { return nil }
func (f failed) TypeMap() *pgtype.Map                         { return nil }

type failedBatch struct{ err error }

func (f failedBatch) Exec() (pgconn.CommandTag, error) { return pgconn.CommandTag{}, f.err }
func (f failedBatch) Query() (pgx.Rows, error)         { return failed(f), f.err }
func (f failedBatch) QueryRow() pgx.Row                { return failed(f) }
func (f failedBatch) Close() error                     { return f.err }
func (f failedBatch) Tx() pgx.Tx                       { return nil }
