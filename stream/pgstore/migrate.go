package pgstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/levada-io/levada/stream/internal/jobrule"
)

//go:embed migrations
var migrations embed.FS

// migrate brings one set of tables up to date. Only one process at a time does that; the others wait for it.
func migrate(ctx context.Context, pool *pgxpool.Pool, set, what string) error {
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() // gives the pool's connections back, and leaves the pool open
	files, err := fs.Sub(migrations, "migrations/"+set)
	if err != nil {
		return err
	}
	table := "levada_" + set + "_version"
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(table), goose.WithDisableGlobalRegistry(true),
		goose.WithSessionLocker(locker{}))
	if err != nil {
		return fmt.Errorf("migrations of %s: %w", what, err)
	}
	sources := provider.ListSources()
	known := sources[len(sources)-1].Version
	stored, err := schemaVersion(ctx, db, table)
	if err == nil && stored < known {
		// Where all is up to date, nothing but reading is needed: not even the right to make tables.
		if _, err = provider.Up(ctx); err == nil {
			stored, err = schemaVersion(ctx, db, table)
		}
	}
	if err != nil {
		return fmt.Errorf("migrate the tables of %s from version %d to %d: %w", what, stored, known, err)
	}
	if stored > known {
		return jobrule.NewerSchema(what, stored, known)
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

// locker keeps two processes from migrating at once. It asks again and again rather than wait in the server, where a statement
// timeout of the pool's could end the wait.
type locker struct{}

// lockKey is "levada" in ASCII.
const lockKey = 0x6c6576616461

func (locker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	for {
		var got bool
		if err := conn.QueryRowContext(ctx, `select pg_try_advisory_lock($1::bigint)`, int64(lockKey)).Scan(&got); err != nil || got {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (locker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	var had bool
	if err := conn.QueryRowContext(ctx, `select pg_advisory_unlock($1::bigint)`, int64(lockKey)).Scan(&had); err != nil {
		return err
	}
	if !had {
		return errors.New("the lock for migrations was lost: is there a connection pooler that needs another mode?")
	}
	return nil
}
