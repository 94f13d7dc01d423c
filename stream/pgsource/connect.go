package pgsource

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream/internal/pooler"
)

// Connect returns a pool of connections for [Keyset] and [Snapshot]. Through a connection pooler, such as PgBouncer in transaction mode, statements
// are not kept prepared (pgx.QueryExecModeCacheDescribe), unless the connection string has a default_query_exec_mode. It connects once, to find out, so the
// database must answer. The caller closes the pool.
func Connect(ctx context.Context, dsn string) (*pgxpool.Pool, error) { return pooler.Connect(ctx, dsn) }

// connections is a pool that is checked once before it is used: a pool of the user's that keeps statements prepared fails behind a connection
// pooler in transaction mode, with little load much later than at the start.
type connections struct {
	*pgxpool.Pool
	checked atomic.Bool
}

func (c *connections) check(ctx context.Context) error {
	if c.checked.Load() {
		return nil
	}
	if err := pooler.Check(ctx, c.Pool, "pgsource.Connect"); err != nil {
		return err
	}
	c.checked.Store(true)
	return nil
}
