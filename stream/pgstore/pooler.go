package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream/internal/pooler"
)

// execMode is the setting of a connection string that says how pgx sends statements.
const execMode = "default_query_exec_mode"

// Connect returns a pool of connections for [New], [NewSink] and [Migrate]. Through a connection pooler, such as PgBouncer in transaction mode,
// statements are not kept prepared (pgx.QueryExecModeCacheDescribe), unless the connection string has a default_query_exec_mode. The caller
// closes the pool.
func Connect(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil || config.ConnConfig.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement || strings.Contains(dsn, execMode) {
		return pool, err
	}
	behind := false
	err = pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		behind, err = pooler.Between(ctx, conn.Conn())
		return err
	})
	if err == nil && !behind {
		return pool, nil
	}
	pool.Close()
	if err != nil {
		return nil, err
	}
	config = config.Copy()
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	return pgxpool.NewWithConfig(ctx, config)
}

// connectTables returns the tables behind a pool, or an error for a pool whose statements fail, now or under load, behind a connection pooler.
func connectTables(ctx context.Context, pool *pgxpool.Pool, schema string) (*tables, error) {
	var check func(context.Context, *pgx.Conn) (bool, error)
	mode := pool.Config().ConnConfig.DefaultQueryExecMode
	switch mode {
	case pgx.QueryExecModeCacheStatement:
		check = pooler.LosesStatements
	case pgx.QueryExecModeDescribeExec: // describes and executes in two round trips
		check = pooler.SharesSessions
	default: // these send a statement as a whole
		return newTables(pool, schema), nil
	}
	unsafe := false
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		unsafe, err = check(ctx, conn.Conn())
		return err
	})
	switch {
	case unsafe:
		return nil, fmt.Errorf("the pool leads through a connection pooler in transaction mode (PgBouncer, pool_mode = transaction), where prepared statements are lost, but pgx is set to %s=%s: "+
			"set %[1]s=exec in the connection string, or ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec; or use pgstore.Open or pgstore.Connect, which choose", execMode, strings.ReplaceAll(mode.String(), " ", "_"))
	case err != nil:
		return nil, fmt.Errorf("check the connection for a pooler: %w", unpooled(err))
	}
	return newTables(pool, schema), nil
}

// unpooled explains errors of poolers that allow too little.
func unpooled(err error) error {
	if err != nil && strings.Contains(err.Error(), "statement pooling") {
		return errors.Join(errors.New("the connection pooler allows no transactions: set pool_mode = transaction, or session"), err)
	}
	return err
}
