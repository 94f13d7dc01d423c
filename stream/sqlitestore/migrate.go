package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"

	"github.com/levada-io/levada/stream/internal/jobrule"
)

// set is a set of tables that have a version of their own.
type set struct{ name, what string }

func setsOf(path string) []set {
	return []set{{"job", "the job store " + path}, {"sink", "the sink " + path}}
}

// WithoutMigrate leaves the file as it is: it is not created, its tables are not changed, and a file without them, or with older ones, is an
// error that wraps [stream.ErrOlder]. It is for programs that only read; [Migrate], or `levada stream migrate`, brings the tables up to date.
func WithoutMigrate() Option { return func(s *Store) { s.keep = true } }

// Migrate creates the file and its tables, or brings them up to date.
func Migrate(ctx context.Context, path string) error {
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	return s.Close()
}

// MigrateSink creates the tables of a sink alone, or brings them up to date: for [NewSink] in another database than the job store's.
func MigrateSink(ctx context.Context, db *sql.DB) error { return migrate(ctx, db, sinkSet, "the sink") }

// sinkSet is the name of a sink's set of tables.
const sinkSet = "sink"

// SinkVersion reads the version of a sink's tables. It changes nothing.
func SinkVersion(ctx context.Context, db *sql.DB) (v Version, err error) {
	v.Tables = "the sink"
	if v.Known, err = knownVersion(sinkSet); err != nil {
		return v, err
	}
	if v.Stored, err = schemaVersion(ctx, db, "levada_sink_version"); err != nil {
		err = fmt.Errorf("the tables of the sink: %w", explain(err))
	}
	return v, err
}

// checkSink returns an error unless the tables of a sink are those that this program needs.
func checkSink(ctx context.Context, db *sql.DB) error {
	v, err := SinkVersion(ctx, db)
	if err != nil {
		return err
	}
	return v.check()
}

// Version is the state of a set of tables.
type Version struct {
	// Tables says which tables they are.
	Tables string `json:"tables"`
	// Stored is their version in the file, 0 if there are none; Known is the newest that this program knows.
	Stored int64 `json:"stored"`
	Known  int64 `json:"known"`
}

// Versions reads the versions of the tables in a file. It changes nothing, and returns an error that wraps [fs.ErrNotExist] if there is no
// file.
func Versions(ctx context.Context, path string) (all []Version, err error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(absolute)
	if err == nil && !info.Mode().IsRegular() {
		err = errNotRegular
	}
	if err != nil { // SQLite would create it
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	// Not mode=ro: SQLite needs to write beside a database whose last process was killed. The journal's mode is left as it is.
	name := url.URL{Scheme: "file", Path: filepath.ToSlash(absolute), RawQuery: url.Values{"_query_only": {"1"}, "_busy_timeout": {fmt.Sprint(busyTimeout.Milliseconds())}}.Encode()}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, set := range setsOf(path) {
		v := Version{Tables: set.what}
		if v.Known, err = knownVersion(set.name); err != nil {
			return nil, err
		}
		if v.Stored, err = schemaVersion(ctx, db, "levada_"+set.name+"_version"); err != nil {
			return nil, fmt.Errorf("the tables of %s: %w", set.what, explain(err))
		}
		all = append(all, v)
	}
	return all, nil
}

func knownVersion(set string) (int64, error) {
	files, err := fs.ReadDir(migrations, "migrations/"+set)
	if err != nil {
		return 0, err
	}
	return goose.NumericComponent(files[len(files)-1].Name())
}

// check returns an error unless the tables of a file are those that this program needs.
func check(ctx context.Context, path string) error {
	all, err := Versions(ctx, path)
	if err != nil {
		return err
	}
	for _, v := range all {
		if err := v.check(); err != nil {
			return err
		}
	}
	return nil
}

func (v Version) check() error {
	switch {
	case v.Stored < v.Known:
		return jobrule.OlderSchema(v.Tables, v.Stored, v.Known)
	case v.Stored > v.Known:
		return jobrule.NewerSchema(v.Tables, v.Stored, v.Known)
	}
	return nil
}
