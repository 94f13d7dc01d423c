package connect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// StoreFlags name the job store.
type StoreFlags struct{ Name, Schema string }

// Register adds the flags.
func (f *StoreFlags) Register(flags *pflag.FlagSet) {
	flags.StringVar(&f.Name, "store", "./levada-streams.db", "job store: the path of a SQLite file, or a postgres:// URL")
	flags.StringVar(&f.Schema, "store-schema", "", "schema of the tables in Postgres (default: the one that search_path names)")
}

// Kind is a kind of job store.
type Kind int

// The kinds of job stores.
const (
	SQLite Kind = iota
	Postgres
)

// Place returns what kind of store the flags name, and its path or URL.
func (f *StoreFlags) Place() (kind Kind, name string, err error) {
	scheme, rest, ok := strings.Cut(f.Name, "://")
	switch {
	case f.Name == "":
		return 0, "", commandline.Usagef("--store is empty: expected the path of a SQLite file, or a postgres:// URL")
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return Postgres, f.Name, nil
	case ok && (rest == "" || scheme != "file"):
		return 0, "", commandline.Usagef("--store %s://...: expected the path of a SQLite file, or a postgres:// URL", scheme)
	case f.Schema != "":
		return 0, "", commandline.Usagef("--store-schema needs a postgres:// store: a SQLite file has no schemas")
	}
	return SQLite, strings.TrimPrefix(f.Name, "file://"), nil
}

// PostgresOptions are those of package pgstore that the flags ask for.
func (f *StoreFlags) PostgresOptions() []pgstore.Option {
	if f.Schema == "" {
		return nil
	}
	return []pgstore.Option{pgstore.WithSchema(f.Schema)}
}

// Database is a job store, and the tables beside it.
type Database struct {
	stream.Store
	Path string // of the SQLite file, or empty
	// SQLite and Postgres are the store itself: exactly one of them is set.
	SQLite   *sqlitestore.Store
	Postgres *pgstore.Store
}

// Open opens the store. create says that its file and its tables may be created or brought up to date. Otherwise nothing is: a name that was
// mistyped would look like an empty store, and a database that is another program's would get tables.
func (f *StoreFlags) Open(ctx context.Context, create bool) (*Database, error) {
	kind, path, err := f.Place()
	if err != nil {
		return nil, err
	}
	if kind == Postgres {
		return f.openPostgres(ctx, path, create)
	}
	if _, err := os.Stat(path); !create && errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no job store at %s: name it with --store (LEVADA_STORE); `levada stream submit` creates one", path)
	}
	var options []sqlitestore.Option
	if !create {
		options = append(options, sqlitestore.WithoutMigrate())
	}
	s, err := sqlitestore.Open(ctx, path, options...)
	if err != nil {
		return nil, MigrateHint(err, "levada stream migrate")
	}
	return &Database{Store: s, Path: path, SQLite: s}, nil
}

func (f *StoreFlags) openPostgres(ctx context.Context, url string, create bool) (*Database, error) {
	asking, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	options := f.PostgresOptions()
	if !create {
		options = append(options, pgstore.WithoutMigrate())
	}
	s, err := pgstore.Open(asking, url, options...)
	if err != nil {
		return nil, MigrateHint(err, "levada stream migrate")
	}
	return &Database{Store: s, Postgres: s}, nil
}

// MigrateHint adds the command that brings tables up to date to an error that says they are too old: the stores name their functions only.
func MigrateHint(err error, command string) error {
	if errors.Is(err, stream.ErrOlder) {
		return fmt.Errorf("%w: run `%s`", err, command)
	}
	return err
}

// Offsets returns a sink without a handler: it keeps checkpoints and quarantine.
func (d *Database) Offsets() stream.ReplaySink {
	if d.Postgres != nil {
		return d.Postgres.Sink(nil)
	}
	return d.SQLite.Sink(nil)
}

// CreateTable returns a sink into a table, which it makes if need be. The table is to be closed before the store.
func (d *Database) CreateTable(ctx context.Context, name string) (stream.ReplaySink, streamtable.Reader, error) {
	if d.Postgres != nil {
		t, err := streamtable.CreatePostgres(ctx, d.Postgres.Pool(), name)
		if err != nil {
			return nil, nil, err
		}
		return d.Postgres.Sink(t.Insert), t, nil
	}
	t, err := streamtable.CreateSQLite(ctx, d.Path, name)
	if err != nil {
		return nil, nil, err
	}
	return d.SQLite.Sink(t.Insert), t, nil
}

// OpenTable opens a table that is there.
func (d *Database) OpenTable(ctx context.Context, name string) (streamtable.Reader, error) {
	if d.Postgres != nil {
		return streamtable.OpenPostgres(ctx, d.Postgres.Pool(), name)
	}
	return streamtable.OpenSQLite(ctx, d.Path, name)
}

// OpenQuery checks a query on the user's own tables.
func (d *Database) OpenQuery(ctx context.Context, query, job string) (*streamtable.Query, error) {
	if d.Postgres != nil {
		return streamtable.OpenPostgresQuery(ctx, d.Postgres.Pool(), query, job)
	}
	return streamtable.OpenSQLiteQuery(ctx, d.Path, query, job)
}

// Closing closes the store at the end of a command, and tells what went wrong if nothing else did.
func (d *Database) Closing(err *error) {
	if e := d.Close(); e != nil && *err == nil {
		*err = fmt.Errorf("close the job store: %w", e)
	}
}
