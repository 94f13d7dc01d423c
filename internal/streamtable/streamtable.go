// Package streamtable keeps the records of streams in a table of a job store's own database, exactly once: a row is inserted in the
// transaction that moves its job's offset. It is what `levada stream work --stream NAME=TABLE` uses.
//
// The table has the columns job, seq, key and value; key and value hold the bytes as they came. It has no index, which is the fastest
// way in, and enough for exactly once, since the committed offset prevents duplicates. Add an index to read single records.
package streamtable

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/levada-io/levada/stream"
)

// ErrNoTable: there is no table of that name.
var ErrNoTable = errors.New("no such table")

// ErrUnusable: the name is none for a table of records, or the table of that name was made for something else. Another name helps.
var ErrUnusable = errors.New("no table for records")

// Passes returns the reason of an error of the database that passes by itself, such as a full disk, or "" for others.
func Passes(err error) stream.Reason {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return stream.ReasonStorageFull
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return stream.ReasonLockWait
		case sqlite3.SQLITE_IOERR:
			return stream.ReasonOutage
		}
		return ""
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch class := e.Code[:min(2, len(e.Code))]; {
		case e.Code == "53100":
			return stream.ReasonStorageFull
		case class == "40", e.Code == "55P03":
			return stream.ReasonLockWait
		case class == "53":
			return stream.ReasonOverloaded
		case class == "08", class == "57", class == "58", e.Code == "25006":
			return stream.ReasonOutage
		}
		return ""
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return stream.ReasonStorageFull
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return stream.ReasonOutage
	}
	return ""
}

// Reader reads what a job has put into a table.
type Reader interface {
	// Name returns the table's name.
	Name() string
	// Rows returns the records of a job; ordered by their number, or as they come, which is faster.
	Rows(ctx context.Context, job string, ordered bool) iter.Seq2[stream.Record, error]
	// Close frees what the reader holds.
	Close() error
}

var columns = []string{"job", "seq", "key", "value"}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// checkName refuses what would need quoting to be used by hand, and the store's own tables.
func checkName(name string, schemas bool) error {
	parts := []string{name}
	if schemas {
		parts = strings.SplitN(name, ".", 2)
	}
	for _, part := range parts {
		if !identifier.MatchString(part) {
			return fmt.Errorf("%w: %q is not a table name: use up to 63 letters, digits and _, not beginning with a digit", ErrUnusable, name)
		}
	}
	if last := strings.ToLower(parts[len(parts)-1]); strings.HasPrefix(last, "levada_") || strings.HasPrefix(last, "sqlite_") || strings.HasPrefix(last, "pg_") {
		return fmt.Errorf("%w: %q: names that begin with levada_, sqlite_ or pg_ are taken", ErrUnusable, name)
	}
	return nil
}

// quote quotes a name that checkName has let pass.
func quote(name string) string { return `"` + strings.ReplaceAll(name, ".", `"."`) + `"` }

// checkColumns refuses a table that was made for something else.
func checkColumns(name string, found []string) error {
	for _, column := range columns {
		if !slices.Contains(found, column) {
			return fmt.Errorf("%w: table %s has no column %s: a table for records has the columns %s; name another one", ErrUnusable, name, column, strings.Join(columns, ", "))
		}
	}
	return nil
}
