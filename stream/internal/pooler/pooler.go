// Package pooler finds out what a connection pooler between a client and Postgres allows.
//
// In PgBouncer's transaction mode each transaction may run on another server connection. What belongs to a session (prepared statements, LISTEN,
// settings, advisory locks of the session) is then on a server connection that other clients get, and missing on the next one.
package pooler

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// rounds is how often two clients are compared. A pooler gives out the server connection that was released last, or each in turn, so that the
// first or second round shows whether clients share them; other clients of the pooler only make that more likely.
const rounds = 6

// timeout bounds what a check waits for: a pooler whose server connections are all in use lets clients wait.
const timeout = 10 * time.Second

// Between reports whether something between client and server has made the connection its own: the process that the client would cancel is not
// the one that answers.
func Between(ctx context.Context, conn *pgx.Conn) (bool, error) {
	pid, err := backend(ctx, conn)
	return err == nil && pid != uint64(conn.PgConn().PID()), err
}

// backend uses the simple protocol, which works through every pooler.
func backend(ctx context.Context, conn *pgx.Conn) (uint64, error) {
	results, err := conn.PgConn().Exec(ctx, "select pg_backend_pid()").ReadAll()
	if err != nil {
		return 0, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return 0, errors.New("the server did not say which process it is")
	}
	return strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
}

// second connects as conn is connected, and calls do with both.
func second(ctx context.Context, conn *pgx.Conn, do func(ctx context.Context, other *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	other, err := pgx.ConnectConfig(ctx, conn.Config())
	if err != nil {
		return fmt.Errorf("a second connection to check the pooler: %w", err)
	}
	defer func() { _ = other.Close(context.WithoutCancel(ctx)) }()
	return do(ctx, other)
}

// SharesSessions reports whether clients share server connections, as in PgBouncer's transaction mode. It is false without a pooler, and for one in
// session mode.
func SharesSessions(ctx context.Context, conn *pgx.Conn) (shares bool, err error) {
	if between, err := Between(ctx, conn); err != nil || !between {
		return false, err
	}
	err = second(ctx, conn, func(ctx context.Context, other *pgx.Conn) error {
		clients, owner := []*pgx.Conn{conn, other}, map[uint64]int{}
		var last [2]uint64
		for range rounds {
			for i, client := range clients {
				pid, err := backend(ctx, client)
				if err != nil {
					return err
				}
				before, seen := owner[pid]
				if seen && before != i || last[i] != 0 && last[i] != pid {
					shares = true
					return nil
				}
				owner[pid], last[i] = i, pid
			}
		}
		return nil
	})
	return shares, err
}

// LosesStatements reports whether statements that a client has prepared are missing later, or are in the way of another client's. It is false for
// poolers that keep track of them, such as PgBouncer from 1.21 on with max_prepared_statements.
func LosesStatements(ctx context.Context, conn *pgx.Conn) (loses bool, err error) {
	if between, err := Between(ctx, conn); err != nil || !between {
		return false, err
	}
	err = second(ctx, conn, func(ctx context.Context, other *pgx.Conn) error {
		clients := []*pgx.Conn{conn, other}
		for range rounds {
			name := "levada_check_" + rand.Text()
			for _, client := range clients {
				_, err := client.PgConn().Prepare(ctx, name, "select 1", nil)
				if loses = lost(err); loses || err != nil {
					_ = client.PgConn().Deallocate(ctx, name)
					return unless(loses, err)
				}
			}
			for _, client := range clients {
				err := client.PgConn().ExecPrepared(ctx, name, nil, nil, nil).Read().Err
				if loses = lost(err); loses || err != nil {
					return unless(loses, err)
				}
			}
			for _, client := range clients {
				if err := client.PgConn().Deallocate(ctx, name); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return loses, err
}

// lost: a prepared statement exists already, or does not exist.
func lost(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == "42P05" || e.Code == "26000")
}

func unless(found bool, err error) error {
	if found {
		return nil
	}
	return err
}
