// Package streamtable keeps the records of streams in a table of a job store's own database, exactly once: a row is inserted in the
// transaction that moves its job's offset. It is what `levada stream work --stream NAME=TABLE` uses.
//
// The table has the columns job, seq, key and value; key and value hold the bytes as they came. It has no index, which is the fastest
// way in, and enough for exactly once, since the offset stands guard. Whoever reads single records adds an index.
package streamtable

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"

	"github.com/levada-io/levada/stream"
)

// ErrNoTable: there is no table of that name.
var ErrNoTable = errors.New("no such table")

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
			return fmt.Errorf("%q is no table name: use up to 63 letters, digits and _, not beginning with a digit", name)
		}
	}
	if last := strings.ToLower(parts[len(parts)-1]); strings.HasPrefix(last, "levada_") || strings.HasPrefix(last, "sqlite_") || strings.HasPrefix(last, "pg_") {
		return fmt.Errorf("%q is no table for records: names that begin with levada_, sqlite_ or pg_ are taken", name)
	}
	return nil
}

// quote quotes a name that checkName has let pass.
func quote(name string) string { return `"` + strings.ReplaceAll(name, ".", `"."`) + `"` }

// checkColumns refuses a table that was made for something else.
func checkColumns(name string, found []string) error {
	for _, column := range columns {
		if !slices.Contains(found, column) {
			return fmt.Errorf("table %s has no column %s: a table for records has the columns %s; name another one", name, column, strings.Join(columns, ", "))
		}
	}
	return nil
}
