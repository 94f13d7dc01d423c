package streamtable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver, as sqlitestore uses it

	"github.com/levada-io/levada/stream"
)

// SQLite is a table in a SQLite file.
type SQLite struct {
	db     *sql.DB
	name   string
	insert string
}

// CreateSQLite makes the table in the file of a sqlitestore.Store unless it is there.
func CreateSQLite(ctx context.Context, path, name string) (*SQLite, error) {
	t, err := openSQLite(path, name)
	if err != nil {
		return nil, err
	}
	// The row's number is SQLite's own: a key of text would make each insert three times as slow.
	_, err = t.db.ExecContext(ctx, `create table if not exists `+quote(name)+` (id integer primary key, job text not null, seq integer not null, key blob not null, value blob not null)`)
	if err == nil {
		err = t.check(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make table %s in %s: %w", name, path, err), t.db.Close())
	}
	return t, nil
}

// OpenSQLite opens a table that is there, or returns an error that wraps ErrNoTable.
func OpenSQLite(ctx context.Context, path, name string) (*SQLite, error) {
	t, err := openSQLite(path, name)
	if err != nil {
		return nil, err
	}
	if err := t.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("table %s in %s: %w", name, path, err), t.db.Close())
	}
	return t, nil
}

func openSQLite(path, name string) (*SQLite, error) {
	if err := checkName(name, false); err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dsn := url.URL{Scheme: "file", Path: filepath.ToSlash(absolute), RawQuery: url.Values{"_pragma": {"busy_timeout(10000)", "synchronous(FULL)"}}.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(2)
	return &SQLite{db: db, name: name, insert: `insert into ` + quote(name) + ` (job, seq, key, value) values (?, ?, ?, ?)`}, nil
}

func (t *SQLite) check(ctx context.Context) error {
	rows, err := t.db.QueryContext(ctx, `select name from pragma_table_info(?)`, t.name)
	if err != nil {
		return err
	}
	found, err := texts(rows)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return ErrNoTable
	}
	return checkColumns(t.name, found)
}

func texts(rows *sql.Rows) (all []string, err error) {
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, rows.Err()
}

// Insert is a handler for sqlitestore.
func (t *SQLite) Insert(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
	insert, err := tx.PrepareContext(ctx, t.insert)
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, r := range b.Records {
		if _, err := insert.ExecContext(ctx, b.Job.ID, int64(r.Seq), r.Key, notNull(r.Value)); err != nil {
			return fmt.Errorf("record %d: %w", r.Seq, err)
		}
	}
	return nil
}

// notNull keeps an empty value from becoming NULL.
func notNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Name implements Reader.
func (t *SQLite) Name() string { return t.name }

// Rows implements Reader.
func (t *SQLite) Rows(ctx context.Context, job string, ordered bool) iter.Seq2[stream.Record, error] {
	query := `select seq, key, value from ` + quote(t.name) + ` where job = ?`
	if ordered {
		query += ` order by seq`
	}
	return func(yield func(stream.Record, error) bool) {
		rows, err := t.db.QueryContext(ctx, query, job)
		if err != nil {
			yield(stream.Record{}, fmt.Errorf("read table %s: %w", t.name, err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			var seq int64
			var r stream.Record
			if err := rows.Scan(&seq, &r.Key, &r.Value); err != nil {
				yield(r, fmt.Errorf("read table %s: %w", t.name, err))
				return
			}
			r.Seq = uint64(seq)
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(stream.Record{}, fmt.Errorf("read table %s: %w", t.name, err))
		}
	}
}

// Close implements Reader.
func (t *SQLite) Close() error { return t.db.Close() }
