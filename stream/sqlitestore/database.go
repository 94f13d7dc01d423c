package sqlitestore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/levada-io/levada/stream/internal/jobrule"
)

//go:embed migrations
var migrations embed.FS

// busyTimeout is how long a process waits while another one writes. It must outlast a commit of the other's worker.
const busyTimeout = 10 * time.Second

// openFile opens a database file, once for writing and once for reading: SQLite has one writer at a time, so writers queue
// for one connection rather than for the file.
func openFile(ctx context.Context, path string) (write, read *sql.DB, err error) {
	if path == "" || path == ":memory:" {
		return nil, nil, fmt.Errorf("open SQLite database %q: a file is needed, since several connections use it", path)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	if err := checkPlace(absolute); err != nil {
		return nil, nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	open := func(extra url.Values, connections int) (*sql.DB, error) {
		q := url.Values{
			"_busy_timeout": {fmt.Sprint(busyTimeout.Milliseconds())},
			// Large pages hold large records in fewer steps. The journal's mode fixes the size; the driver sets it after what is in _pragma.
			"_pragma":       {"page_size(16384)"},
			"_journal_mode": {"WAL"},
			"_synchronous":  {"FULL"}, // a commit that was reported is on the disk
		}
		for k, v := range extra {
			q[k] = v
		}
		name := url.URL{Scheme: "file", Path: filepath.ToSlash(absolute), RawQuery: q.Encode()}
		db, err := sql.Open("sqlite", name.String())
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
		return db, nil
	}
	if write, err = open(url.Values{"_txlock": {"immediate"}}, 1); err == nil {
		err = patiently(ctx, func() error { return write.PingContext(ctx) })
	}
	if err == nil {
		read, err = open(url.Values{"_query_only": {"1"}}, max(2, min(runtime.GOMAXPROCS(0), 8)))
	}
	if err != nil {
		if write != nil {
			err = errors.Join(err, write.Close())
		}
		return nil, nil, fmt.Errorf("open SQLite database %s: %w", path, explain(err))
	}
	return write, read, nil
}

// OpenDB opens a database file for [NewSink], [MigrateSink] and [PurgeSink], with the settings that a sink needs, and creates it if it is not there. It has
// one connection, which a handler's transaction holds. The caller closes it, after the workers.
func OpenDB(ctx context.Context, path string) (*sql.DB, error) {
	write, read, err := openFile(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := read.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("open SQLite database %s: %w", path, err), write.Close())
	}
	return write, nil
}

var errNotRegular = errors.New("not a regular file: name a file, which is created if it does not exist")

// checkPlace finds out what SQLite would only call "unable to open database file".
func checkPlace(path string) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return errNotRegular
	}
	dir := filepath.Dir(path)
	probe, err := os.CreateTemp(dir, ".levada-*")
	if err != nil {
		return fmt.Errorf("the directory %s must exist and be writable, since SQLite keeps its journal beside the database: %w", dir, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

func explain(err error) error {
	switch code(err) & 0xff {
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		return fmt.Errorf("the file is not a SQLite database, or is damaged: name another file, or restore it: %w", err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return fmt.Errorf("the file and its directory must be readable and writable: %w", err)
	}
	return err
}

// code is SQLite's extended result code, or 0.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}

func busy(err error) bool {
	switch code(err) & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return true
	}
	return false
}

// patiently repeats what SQLite refuses while another process opens the database for the first time: changing the journal's
// mode does not wait for locks as other statements do.
func patiently(ctx context.Context, try func() error) error {
	end := time.Now().Add(busyTimeout)
	for {
		err := try()
		if !busy(err) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// migrate brings one set of tables up to date. Several processes may do that at once: each step is a transaction, so the one that
// comes second fails, and then finds the step done.
func migrate(ctx context.Context, db *sql.DB, set, what string) error {
	files, err := fs.Sub(migrations, "migrations/"+set)
	if err != nil {
		return err
	}
	table := "levada_" + set + "_version"
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithTableName(table), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("migrations of %s: %w", what, err)
	}
	sources := provider.ListSources()
	known := sources[len(sources)-1].Version
	end := time.Now().Add(busyTimeout)
	for {
		stored, err := schemaVersion(ctx, db, table)
		switch {
		case err != nil:
			return fmt.Errorf("the tables of %s: %w", what, explain(err))
		case stored == known:
			return nil
		case stored > known:
			return jobrule.NewerSchema(what, stored, known)
		}
		if _, err := provider.Up(ctx); err != nil && time.Now().After(end) {
			return fmt.Errorf("migrate the tables of %s from version %d to %d: %w", what, stored, known, explain(err))
		} else if err != nil {
			if again, checkErr := schemaVersion(ctx, db, table); checkErr == nil && again == stored && !raced(err) {
				return fmt.Errorf("migrate the tables of %s from version %d to %d: %w", what, stored, known, explain(err))
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("migrate the tables of %s: %w", what, ctx.Err())
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// raced reports whether a migration may have failed because another process was at it.
func raced(err error) bool {
	primary := code(err) & 0xff
	return busy(err) || primary == sqlite3.SQLITE_ERROR || primary == sqlite3.SQLITE_CONSTRAINT || primary == sqlite3.SQLITE_SCHEMA
}

// schemaVersion is 0 before the first migration.
func schemaVersion(ctx context.Context, db *sql.DB, table string) (version int64, err error) {
	var exists bool
	if err := db.QueryRowContext(ctx, `select exists (select 1 from sqlite_master where type = 'table' and name = ?)`, table).Scan(&exists); err != nil || !exists {
		return 0, err
	}
	err = db.QueryRowContext(ctx, `select coalesce(max(version_id), 0) from `+table+` where is_applied`).Scan(&version)
	return version, err
}

// micros is how times are stored: 0 for the zero time, which is kept as NULL.
func micros(t time.Time) sql.NullInt64 {
	if t.IsZero() {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: true}
}

func fromMicros(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.UnixMicro(n.Int64).UTC()
}
