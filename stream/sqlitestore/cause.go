package sqlitestore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/levada-io/levada/stream"
)

// classify marks the errors that are the record's fault, at once or once it has waited for other rows, and names those that are not.
// Uniqueness counts as depending on other rows: the one that is in the way may be about to be changed.
func classify(err error) error {
	if err == nil || stream.VerdictOf(err) != stream.NoVerdict {
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
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
		return stream.WithReason(stream.ReasonOutage, err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return stream.WithReason(stream.ReasonPrivilege, fmt.Errorf("%w: this process must be able to write the database file and its directory: give its user that right, or remount the file system for writing", err))
	case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA:
		if foreignSchema(err) {
			return stream.WithReason(stream.ReasonSchema, fmt.Errorf("%w: the statement does not fit the tables of the database file: apply the migration that is missing, or run the version of the program that fits", err))
		}
	}
	return err
}

// foreignSchema reports whether a statement names what the database does not have. SQLite has no code for that, and its words have stayed the same.
func foreignSchema(err error) bool {
	for _, words := range []string{"no such table", "no such column", "has no column named", "no such view", "no such function"} {
		if strings.Contains(err.Error(), words) {
			return true
		}
	}
	return false
}

// unbegun says why a transaction could not begin.
func unbegun(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return stream.WithReason(stream.ReasonLockWait, fmt.Errorf("SQLite has one writer at a time, and others, such as the commits of other jobs, took all of the time: %w", err))
	}
	return outage(err)
}
