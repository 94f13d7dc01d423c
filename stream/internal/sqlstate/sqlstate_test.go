package sqlstate_test

import (
	"testing"

	"github.com/levada-io/levada/stream/internal/sqlstate"
)

// Which records go into quarantine, and whether a job waits, hangs on this table.
func TestOf(t *testing.T) {
	for code, want := range map[string]sqlstate.Class{
		"22P02": sqlstate.Data, "22001": sqlstate.Data, "23502": sqlstate.Data, "23514": sqlstate.Data, "23000": sqlstate.Data,
		"23503": sqlstate.Dependent, "23505": sqlstate.Dependent, "23P01": sqlstate.Dependent, "23001": sqlstate.Dependent,
		"40001": sqlstate.Lock, "40P01": sqlstate.Lock, "55P03": sqlstate.Lock,
		"57014": sqlstate.Slow, "25P03": sqlstate.Slow, "25P04": sqlstate.Slow,
		"53100": sqlstate.Full, "53200": sqlstate.Overload, "53300": sqlstate.Overload,
		"57P01": sqlstate.Outage, "57P03": sqlstate.Outage, "08006": sqlstate.Outage, "25006": sqlstate.Outage, "28P01": sqlstate.Outage, "58030": sqlstate.Outage,
		"42501": sqlstate.Privilege, "42P01": sqlstate.Schema, "42703": sqlstate.Schema, "42883": sqlstate.Schema, "42704": sqlstate.Schema, "42P10": sqlstate.Schema, "42804": sqlstate.Schema, "3F000": sqlstate.Schema,
		"42601": sqlstate.Other, "P0001": sqlstate.Other, "25P02": sqlstate.Other, "XX000": sqlstate.Other, "": sqlstate.Other, "2": sqlstate.Other,
	} {
		if got := sqlstate.Of(code); got != want {
			t.Errorf("%q is of class %d, not %d", code, got, want)
		}
	}
}
