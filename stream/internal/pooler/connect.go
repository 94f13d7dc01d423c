package pooler

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ExecMode is the setting of a connection string that says how pgx sends statements.
const ExecMode = "default_query_exec_mode"

// Connect returns a pool of connections. If they lead through a connection pooler, statements are not kept prepared, unless the connection string says how to
// send them: a statement that was prepared on one server connection is missing on the next.
func Connect(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil || config.ConnConfig.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement || strings.Contains(dsn, ExecMode) {
		return pool, err
	}
	behind := false
	err = pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		behind, err = Between(ctx, conn.Conn())
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

// Check returns an error for a pool whose statements fail, now or under load, behind a connection pooler. instead names what returns a pool that
// works.
func Check(ctx context.Context, pool *pgxpool.Pool, instead string) error {
	var check func(context.Context, *pgx.Conn) (bool, error)
	mode := pool.Config().ConnConfig.DefaultQueryExecMode
	switch mode {
	case pgx.QueryExecModeCacheStatement:
		check = LosesStatements
	case pgx.QueryExecModeDescribeExec: // describes and executes in two round trips
		check = SharesSessions
	default: // these send a statement as a whole
		return nil
	}
	unsafe := false
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		unsafe, err = check(ctx, conn.Conn())
		return err
	})
	switch {
	case unsafe:
		return fmt.Errorf("the pool leads through a connection pooler in transaction mode (PgBouncer, pool_mode = transaction), where prepared statements are lost, but pgx is set to %s=%s: "+
			"set %[1]s=exec in the connection string, or ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec; or use %[3]s, which chooses", ExecMode, strings.ReplaceAll(mode.String(), " ", "_"), instead)
	case err != nil:
		return fmt.Errorf("check the connection for a pooler: %w", Unpooled(err))
	}
	return nil
}

// Unpooled explains errors of poolers that allow too little.
func Unpooled(err error) error {
	if err != nil && strings.Contains(err.Error(), "statement pooling") {
		return errors.Join(errors.New("the connection pooler allows no transactions: set pool_mode = transaction, or session"), err)
	}
	return err
}
