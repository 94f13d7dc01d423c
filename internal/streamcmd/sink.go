package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// sinkFlag names the database of a sink that is not the job store's.
type sinkFlag connect.StoreFlags

func (f *sinkFlag) flags() *connect.StoreFlags { return (*connect.StoreFlags)(f) }

// check finds what is wrong with the flags before anything is deleted.
func (f *sinkFlag) check() error {
	if f.Name == "" {
		if f.Schema != "" {
			return commandline.Usagef("--sink-schema needs --sink, the database of the sink")
		}
		return nil
	}
	if _, _, err := f.flags().Place(); err != nil {
		return commandline.Usagef("%s", strings.ReplaceAll(err.Error(), "--store", "--sink"))
	}
	return nil
}

// purge deletes what the retention says.
func (f *sinkFlag) purge(ctx context.Context, r stream.SinkRetention) (total int, err error) {
	purge, done, err := f.purger(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, done()) }()
	for {
		n, err := purge(r)
		total += n
		if err != nil || n == 0 {
			return total, connect.MigrateHint(err, "levada stream migrate --sink-only")
		}
	}
}

func (f *sinkFlag) purger(ctx context.Context) (purge func(stream.SinkRetention) (int, error), done func() error, err error) {
	kind, name, err := f.flags().Place()
	if err != nil {
		return nil, nil, err
	}
	if kind == connect.Postgres {
		pool, err := pgstore.Connect(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		options := f.flags().PostgresOptions()
		return func(r stream.SinkRetention) (int, error) { return pgstore.PurgeSink(ctx, pool, r, options...) }, closePool(pool), nil
	}
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no database at %s", name)
	}
	db, err := sqlitestore.OpenDB(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	return func(r stream.SinkRetention) (int, error) { return sqlitestore.PurgeSink(ctx, db, r) }, db.Close, nil
}

func closePool(pool *pgxpool.Pool) func() error {
	return func() error { pool.Close(); return nil }
}

// migrateSink creates the tables of a sink alone, or brings them up to date, or only compares.
func migrateSink(ctx context.Context, cmd *cobra.Command, f sinkFlag, check bool, out outputFlag) (err error) {
	kind, name, err := f.flags().Place()
	if err != nil {
		return err
	}
	var v tableVersion
	if kind == connect.Postgres {
		v, err = migratePostgresSink(ctx, name, f.flags().PostgresOptions(), check)
	} else {
		v, err = migrateSQLiteSink(ctx, name, check)
	}
	if err != nil {
		return err
	}
	return printVersions(cmd, out, []tableVersion{v}, "levada stream migrate --sink-only")
}

func migratePostgresSink(ctx context.Context, dsn string, options []pgstore.Option, check bool) (tableVersion, error) {
	pool, err := pgstore.Connect(ctx, dsn)
	if err != nil {
		return tableVersion{}, fmt.Errorf("--store: %w", err)
	}
	defer pool.Close()
	if !check {
		if err := pgstore.MigrateSink(ctx, pool, options...); err != nil {
			return tableVersion{}, err
		}
	}
	v, err := pgstore.SinkVersion(ctx, pool, options...)
	return tableVersion{v.Tables, v.Stored, v.Known}, err
}

func migrateSQLiteSink(ctx context.Context, path string, check bool) (_ tableVersion, err error) {
	if _, err := os.Stat(path); check && errors.Is(err, fs.ErrNotExist) {
		return tableVersion{}, fmt.Errorf("there is no database at %s: run this command without --check to create it", path)
	}
	db, err := sqlitestore.OpenDB(ctx, path)
	if err != nil {
		return tableVersion{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if !check {
		if err := sqlitestore.MigrateSink(ctx, db); err != nil {
			return tableVersion{}, err
		}
	}
	v, err := sqlitestore.SinkVersion(ctx, db)
	return tableVersion{v.Tables, v.Stored, v.Known}, err
}
