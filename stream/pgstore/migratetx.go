package pgstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/levada-io/levada/stream/internal/pooler"
)

const (
	// lockKey is "levada" in ASCII. Locks of sessions, which older versions took, and of transactions exclude each other.
	lockKey = 0x6c6576616461
	// lockPause is how long a process waits between two tries to get the lock.
	lockPause = 20 * time.Millisecond
	// lockPatience is how long it waits before it logs that.
	lockPatience = 3 * time.Second
)

// up applies the migrations of a set in one transaction, which also holds the lock that keeps two processes from migrating at once. The lock must
// not be one of the session: through PgBouncer in transaction mode it would be taken on one server connection, released on another, and stay.
func up(ctx context.Context, t *tables, set string) error {
	files, err := fs.Sub(migrations, "migrations/"+set)
	if err != nil {
		return err
	}
	pooled, err := stdlib.GetPoolConnector(t.Pool).Connect(ctx)
	if err != nil {
		return unconnected(t, err)
	}
	conn := migrationConn{pooled.(*stdlib.Conn)}
	defer func() { _ = conn.Conn.Close() }() // gives the pool its connection back
	defer rollback(ctx, conn.Conn.Conn())
	if err := conn.lock(ctx, set); err != nil {
		return pooler.Unpooled(err)
	}
	db := sql.OpenDB(migrationConnector{conn})
	defer db.Close() // leaves the connection open
	db.SetMaxOpenConns(1)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, qualifiedFiles{files, t}, goose.WithTableName(t.versionTable(set)), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return err
	}
	tag, err := conn.Conn.Conn().Exec(ctx, `commit`)
	if err == nil && tag.String() != "COMMIT" {
		err = fmt.Errorf("the server answered %q to the commit", tag)
	}
	return err
}

// migrationConn is a connection whose transaction holds the lock. The transactions that goose begins in it are savepoints.
type migrationConn struct{ *stdlib.Conn }

// lock begins a transaction that has the lock. It asks again and again rather than wait in the server, where a statement timeout of the pool's could
// end the wait, and in a new transaction each time, which sees what the one before has committed.
func (c migrationConn) lock(ctx context.Context, set string) error {
	conn := c.Conn.Conn()
	for began, said := time.Now(), false; ; {
		if _, err := conn.Exec(ctx, begin); err != nil {
			return err
		}
		var got bool
		if err := conn.QueryRow(ctx, `select pg_try_advisory_xact_lock($1::bigint)`, int64(lockKey)).Scan(&got); err != nil || got {
			return err
		}
		if _, err := conn.Exec(ctx, `rollback`); err != nil {
			return err
		}
		if !said && time.Since(began) > lockPatience {
			said = true
			slog.WarnContext(ctx, "migration waiting", "tables", set, "reason", "another process migrates")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another process that migrates: %w", ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

func (c migrationConn) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	_, err := c.Conn.Conn().Exec(ctx, `savepoint migration`)
	return savepoint{ctx, c}, err
}

// ResetSession hides that of stdlib, which takes an open transaction for a mistake.
func (c migrationConn) ResetSession(context.Context) error { return nil }

// Close leaves the connection to up.
func (c migrationConn) Close() error { return nil }

type savepoint struct {
	ctx  context.Context
	conn migrationConn
}

func (s savepoint) Commit() error {
	_, err := s.conn.Conn.Conn().Exec(s.ctx, `release savepoint migration`)
	return err
}

func (s savepoint) Rollback() error {
	_, err := s.conn.Conn.Conn().Exec(s.ctx, `rollback to savepoint migration`)
	return err
}

type migrationConnector struct{ conn migrationConn }

func (c migrationConnector) Connect(context.Context) (driver.Conn, error) { return c.conn, nil }
func (c migrationConnector) Driver() driver.Driver                        { return stdlib.GetDefaultDriver() }
