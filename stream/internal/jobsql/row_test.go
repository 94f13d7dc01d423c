package jobsql

import (
	"strings"
	"testing"
	"time"
)

// A column without a destination, or the other way round, would be an error of each statement that reads a row.
func TestEachColumnHasADestination(t *testing.T) {
	var row Row[*time.Time]
	var quarantined QuarantineRow[*time.Time]
	var offset Offset
	for table, test := range map[string]struct {
		columns string
		dest    []any
	}{
		"levada_job":        {Columns("j"), row.Dest()},
		"levada_offset":     {OffsetColumns, offset.Dest()},
		"levada_quarantine": {QuarantineColumns, quarantined.Dest()},
	} {
		if n := len(strings.Split(test.columns, ",")); n != len(test.dest) {
			t.Errorf("%s: %d columns and %d destinations", table, n, len(test.dest))
		}
	}
	for _, column := range strings.Split(Columns("j"), ", ") {
		if !strings.HasPrefix(column, "j.") || strings.ContainsAny(column, " \n\t") {
			t.Errorf("column %q, expected one with the name of its table", column)
		}
	}
}

// A row that something else has changed must not become the checkpoint from which a stream goes on.
func TestAnOffsetWithAnotherDigestIsRefused(t *testing.T) {
	for _, n := range []int{0, 15, 17} {
		o := Offset{digest: make([]byte, n)}
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), "changed by something else") {
			t.Errorf("a digest of %d bytes: error %v", n, err)
		}
	}
	o := Offset{epoch: 3, seq: 7, digest: make([]byte, 16)}
	o.Token = []byte{}
	if err := o.Check(); err != nil || o.Seq != 7 || o.Epoch != 3 || o.Token != nil {
		t.Errorf("got %+v, error %v", o, err)
	}
}
