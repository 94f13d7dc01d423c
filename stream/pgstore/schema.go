package pgstore

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// tables runs statements on the pool's connections, with the names of the store's tables qualified by their schema. It leaves search_path
// alone: that belongs to handlers.
type tables struct {
	*pgxpool.Pool
	schema    string    // empty: wherever search_path leads
	qualified *sync.Map // statement -> the same with qualified names; statements are constants, so there are few
}

func newTables(pool *pgxpool.Pool, schema string) *tables {
	return &tables{Pool: pool, schema: schema, qualified: &sync.Map{}}
}

var (
	tableName  = regexp.MustCompile(`\blevada_(job|offset|quarantine)\b`)
	schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)
)

func checkSchema(schema string) error {
	if schema != "" && !schemaName.MatchString(schema) {
		return fmt.Errorf("WithSchema(%q): expected up to 63 lower-case letters, digits and _, not beginning with a digit", schema)
	}
	return nil
}

// qualify returns the statement with the schema before the names of tables.
func (t *tables) qualify(sql string) string {
	if t.schema == "" {
		return sql
	}
	if q, ok := t.qualified.Load(sql); ok {
		return q.(string)
	}
	q := tableName.ReplaceAllString(sql, t.schema+".$0")
	t.qualified.Store(sql, q)
	return q
}

func (t *tables) qualifyBatch(batch *pgx.Batch) *pgx.Batch {
	for _, q := range batch.QueuedQueries {
		q.SQL = t.qualify(q.SQL)
	}
	return batch
}

// Query hides that of the pool.
func (t *tables) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := t.Pool.Query(ctx, t.qualify(sql), args...)
	if err != nil {
		return rows, t.named(err, "", true)
	}
	return namedRows{rows, t}, nil
}

// namedRows names the errors of a statement on the store's tables: privileges are looked at when it is executed.
type namedRows struct {
	pgx.Rows
	t *tables
}

func (r namedRows) Err() error { return r.t.named(r.Rows.Err(), "", true) }

// QueryRow hides that of the pool.
func (t *tables) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return namedRow{t.Pool.QueryRow(ctx, t.qualify(sql), args...), t}
}

// namedRow names the errors of a statement on the store's tables.
type namedRow struct {
	pgx.Row
	t *tables
}

func (r namedRow) Scan(dest ...any) error { return r.t.named(r.Row.Scan(dest...), "", true) }

// Exec hides that of the pool.
func (t *tables) Exec(ctx context.Context, sql string, args ...any) (int64, error) {
	tag, err := t.Pool.Exec(ctx, t.qualify(sql), args...)
	return tag.RowsAffected(), t.named(err, "", true)
}

// versionTable is where the version of a set of tables is kept.
func (t *tables) versionTable(set string) string {
	name := "levada_" + set + "_version"
	if t.schema != "" {
		return t.schema + "." + name
	}
	return name
}

// qualifiedFiles are migrations with qualified names of tables.
type qualifiedFiles struct {
	fs.FS
	tables *tables
}

func (f qualifiedFiles) Open(name string) (fs.File, error) {
	file, err := f.FS.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil || info.IsDir() {
		return file, err
	}
	text, err := fs.ReadFile(f.FS, name)
	if err != nil {
		return nil, err
	}
	text = []byte(f.tables.qualify(string(text)))
	return &qualifiedFile{File: file, Reader: bytes.NewReader(text), size: int64(len(text))}, nil
}

// ReadDir keeps the names of files readable to fs.Glob.
func (f qualifiedFiles) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(f.FS, name) }

type qualifiedFile struct {
	fs.File
	*bytes.Reader
	size int64
}

func (f *qualifiedFile) Read(b []byte) (int, error) { return f.Reader.Read(b) }
func (f *qualifiedFile) Stat() (fs.FileInfo, error) {
	info, err := f.File.Stat()
	return qualifiedInfo{info, f.size}, err
}

type qualifiedInfo struct {
	fs.FileInfo
	size int64
}

func (i qualifiedInfo) Size() int64        { return i.size }
func (i qualifiedInfo) ModTime() time.Time { return i.FileInfo.ModTime() }
