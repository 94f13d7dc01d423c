package pgstore

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/levada-io/levada/stream/internal/jobrule"
)

//go:embed migrations
var migrations embed.FS

// set is a set of tables that have a version of their own.
type set struct{ name, what string }

var (
	jobSet  = set{"job", "the job store"}
	sinkSet = set{"sink", "the sink"}
	allSets = []set{jobSet, sinkSet}
)

// Migrate creates the tables of stores and sinks, or brings them up to date. It takes [WithSchema]. Only one process at a time migrates;
// others wait for it. Tables that are up to date are left alone, and need no right but that to read. It returns an error that wraps
// [stream.ErrNewer] when a newer version of this package has changed them.
func Migrate(ctx context.Context, pool *pgxpool.Pool, opts ...Option) error {
	t, err := tablesOf(ctx, pool, opts)
	if err != nil {
		return err
	}
	for _, s := range allSets {
		if err := migrate(ctx, t, s.name, s.what); err != nil {
			return err
		}
	}
	return nil
}

// MigrateSink creates the tables of a sink alone, or brings them up to date: for [NewSink] in another database than the job store's. It is otherwise as
// [Migrate].
func MigrateSink(ctx context.Context, pool *pgxpool.Pool, opts ...Option) error {
	t, err := tablesOf(ctx, pool, opts)
	if err != nil {
		return err
	}
	return migrate(ctx, t, sinkSet.name, sinkSet.what)
}

func tablesOf(ctx context.Context, pool *pgxpool.Pool, opts []Option) (*tables, error) {
	o, err := optionsOf(opts)
	if err != nil {
		return nil, err
	}
	return connectTables(ctx, pool, o.schema)
}

// Version is the state of a set of tables.
type Version struct {
	// Tables says which tables they are.
	Tables string `json:"tables"`
	// Stored is their version in the database, 0 if there are none; Known is the newest that this program knows.
	Stored int64 `json:"stored"`
	Known  int64 `json:"known"`
}

// Versions reads the versions of the tables. It changes nothing.
func Versions(ctx context.Context, pool *pgxpool.Pool, opts ...Option) ([]Version, error) {
	return versions(ctx, pool, opts, allSets)
}

// SinkVersion is [Versions] of a sink alone.
func SinkVersion(ctx context.Context, pool *pgxpool.Pool, opts ...Option) (Version, error) {
	all, err := versions(ctx, pool, opts, []set{sinkSet})
	if err != nil {
		return Version{}, err
	}
	return all[0], nil
}

func versions(ctx context.Context, pool *pgxpool.Pool, opts []Option, sets []set) ([]Version, error) {
	t, err := tablesOf(ctx, pool, opts)
	if err != nil {
		return nil, err
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	var all []Version
	for _, s := range sets {
		v := Version{Tables: s.what}
		if v.Known, err = knownVersion(s.name); err != nil {
			return nil, err
		}
		if v.Stored, err = schemaVersion(ctx, db, t.versionTable(s.name)); err != nil {
			return nil, unreadVersion(t, s.what, err)
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

// bringUp migrates a set of tables, or only checks that they are what this program needs.
func bringUp(ctx context.Context, t *tables, s set, mayMigrate bool) error {
	if mayMigrate {
		return migrate(ctx, t, s.name, s.what)
	}
	db := stdlib.OpenDBFromPool(t.Pool)
	defer db.Close()
	stored, err := schemaVersion(ctx, db, t.versionTable(s.name))
	if err != nil {
		return unreadVersion(t, s.what, err)
	}
	known, err := knownVersion(s.name)
	switch {
	case err != nil:
		return err
	case stored < known:
		return jobrule.OlderSchema(s.what, stored, known)
	case stored > known:
		return jobrule.NewerSchema(s.what, stored, known)
	}
	return nil
}

// migrate brings one set of tables up to date. Only one process at a time does that; the others wait for it.
func migrate(ctx context.Context, t *tables, set, what string) error {
	db := stdlib.OpenDBFromPool(t.Pool)
	defer db.Close() // gives the pool's connections back, and leaves the pool open
	known, err := knownVersion(set)
	if err != nil {
		return err
	}
	stored, err := schemaVersion(ctx, db, t.versionTable(set))
	if err != nil {
		return unreadVersion(t, what, err)
	}
	if stored < known {
		// Where all is up to date, nothing but reading is needed: not even the right to make tables.
		if err := t.createSchema(ctx); err != nil {
			return err
		}
		if err := up(ctx, t, set); err != nil {
			return fmt.Errorf("migrate the tables of %s from version %d to %d: %w", what, stored, known, t.named(err, "", false))
		}
		if stored, err = schemaVersion(ctx, db, t.versionTable(set)); err != nil {
			return unreadVersion(t, what, err)
		}
	}
	if stored > known {
		return jobrule.NewerSchema(what, stored, known)
	}
	return nil
}

// unreadVersion is the error for a version that could not be read, so none is named.
func unreadVersion(t *tables, what string, err error) error {
	return fmt.Errorf("read the version of the tables of %s: %w", what, t.named(err, "", true))
}

// createSchema creates the schema if it is not there. Two processes may do so at once.
func (t *tables) createSchema(ctx context.Context) error {
	if t.schema == "" {
		return nil
	}
	var there bool
	err := t.QueryRow(ctx, `select exists (select from pg_namespace where nspname = $1)`, t.schema).Scan(&there)
	if err == nil && !there {
		_, err = t.Exec(ctx, `create schema if not exists `+t.schema)
		if state := sqlState(err); state == "23505" || state == "42P06" {
			err = nil // "if not exists" does not wait for another transaction that creates it
		}
	}
	if err != nil {
		return fmt.Errorf("create schema %s: %w", t.schema, err)
	}
	return nil
}

// schemaVersion is 0 before the first migration.
func schemaVersion(ctx context.Context, db *sql.DB, table string) (version int64, err error) {
	var exists bool
	if err := db.QueryRowContext(ctx, `select to_regclass($1) is not null`, table).Scan(&exists); err != nil || !exists {
		return 0, err
	}
	err = db.QueryRowContext(ctx, `select coalesce(max(version_id), 0) from `+table+` where is_applied`).Scan(&version)
	return version, err
}
