package pgstore

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/sqlstate"
)

// classify marks the errors that are the record's fault, at once or once it has waited for other rows. Those that are not the record's fault, such as lock
// waits and full disks, the worker knows by their codes.
func classify(err error) error {
	if stream.VerdictOf(err) != stream.NoVerdict {
		return err
	}
	switch sqlstate.Of(sqlState(err)) {
	case sqlstate.Data:
		return stream.Skip(err)
	case sqlstate.Dependent:
		return stream.Later(err)
	}
	return err
}

// named gives an error of privileges or of the schema its reason, and says what to do: as whom the statement ran, and where, stands in no error of
// Postgres. statement is the handler's, as far as it is known; own: the statement is the store's.
func (t *tables) named(err error, statement string, own bool) error {
	class := sqlstate.Of(sqlState(err))
	if class != sqlstate.Privilege && class != sqlstate.Schema || stream.ReasonOf(err) != "" {
		return err
	}
	config := t.Config().ConnConfig
	advice := sqlstate.Advice(class, fmt.Sprintf("role %q in database %q", config.User, config.Database), own)
	if statement = strings.Join(strings.Fields(statement), " "); statement != "" {
		advice = fmt.Sprintf("in the statement %q: %s", shortened(statement, 200), advice)
	}
	reason := stream.ReasonPrivilege
	if class == sqlstate.Schema {
		reason = stream.ReasonSchema
	}
	return stream.WithReason(reason, fmt.Errorf("%w: %s", err, advice))
}

// shortened cuts a text to at most so many bytes.
func shortened(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}

// recordsFault reports whether the database has refused data.
func recordsFault(err error) bool {
	state := sqlState(err)
	return strings.HasPrefix(state, "22") || strings.HasPrefix(state, "23")
}

// unconnected says why there is no connection.
func unconnected(pool *tables, err error) error {
	if stat := pool.Stat(); err != nil && stat.AcquiredConns() >= stat.MaxConns() {
		return stream.WithReason(stream.ReasonPoolExhausted, fmt.Errorf("all %d connections of the pool are in use: allow more (pool_max_conns in the connection string, or MaxConns), or fewer jobs at once (MaxJobs): %w",
			stat.MaxConns(), err))
	}
	return err
}

// impatient explains the error of a handler whose transaction the server has ended, because it idled for too long. The error that the
// handler gets may be that of a broken connection alone.
func (s *settings) impatient(tx *handlerTx, err error) error {
	state := sqlState(err)
	if state != "25P03" && (state != "" || s.idle == 0 || tx.tx == nil || time.Since(tx.began) < s.idle || !tx.conn.IsClosed()) || stream.VerdictOf(err) != stream.NoVerdict {
		return err
	}
	return stream.WithReason(stream.ReasonTooSlow, fmt.Errorf(
		"the handler had the transaction wait for longer than %v between two statements (Limits.Idle), and the server ended it: have it work before its first statement, or in smaller steps, or raise the limit, and the lease with it: %w", s.idle, err))
}

// fenceWait names what keeps a fence from its row.
func fenceWait(err error) error {
	if passes(err) {
		return stream.WithReason(stream.ReasonLockWait, errors.Join(errors.New("a commit of the job's former owner, or another transaction, holds the lock on its offset"), err))
	}
	return err
}
