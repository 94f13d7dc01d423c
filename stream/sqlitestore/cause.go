package sqlitestore

import (
	"context"
	"errors"
	"fmt"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/levada-io/levada/stream"
)

// classify marks the errors that are the record's fault, at once or once it has waited for other rows, and names those that are nobody's.
// Uniqueness counts as depending on other rows: the one that is in the way may be about to be changed.
func classify(err error) error {
	if err == nil || stream.MarkOf(err) != "" {
		return err
	}
	switch code(err) {
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return stream.Later(err)
	}
	switch code(err) & 0xff {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG:
		return stream.Skip(err)
	}
	return outage(err)
}

// outage names errors of the file or the disk below it.
func outage(err error) error {
	if stream.ReasonOf(err) != "" {
		return err
	}
	switch code(err) & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return stream.WithReason(stream.ReasonLockWait, err)
	case sqlite3.SQLITE_FULL:
		return stream.WithReason(stream.ReasonStorageFull, err)
	case sqlite3.SQLITE_NOMEM:
		return stream.WithReason(stream.ReasonOverloaded, err)
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY:
		return stream.WithReason(stream.ReasonOutage, err)
	}
	return err
}

// unbegun says why a transaction could not begin.
func unbegun(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return stream.WithReason(stream.ReasonLockWait, fmt.Errorf("SQLite has one writer at a time, and others, such as the commits of other jobs, took all of the time: %w", err))
	}
	return outage(err)
}
