package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream/internal/pooler"
)

// Connect returns a pool of connections for [New], [NewSink] and [Migrate]. Through a connection pooler, such as PgBouncer in transaction mode,
// statements are not kept prepared (pgx.QueryExecModeCacheDescribe), unless the connection string has a default_query_exec_mode. The caller
// closes the pool.
func Connect(ctx context.Context, dsn string) (*pgxpool.Pool, error) { return pooler.Connect(ctx, dsn) }

// connectTables returns the tables behind a pool, or an error for a pool whose statements fail, now or under load, behind a connection pooler.
func connectTables(ctx context.Context, pool *pgxpool.Pool, schema string) (*tables, error) {
	if err := pooler.Check(ctx, pool, "pgstore.Open or pgstore.Connect"); err != nil {
		return nil, err
	}
	return newTables(pool, schema), nil
}
