package streamcmd

import (
	"bytes"
	"context"
	"iter"

	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

// rowsCompared is what came of comparing the rows of --query with the records, both in order.
type rowsCompared struct {
	// Records is the number of rows that belong to a record up to the checkpoint.
	Records uint64 `json:"records"`
	// Compared are the columns that were compared: seq, key, value.
	Compared []string `json:"compared"`
	// Differing is how many records have no row, more than one, or another; and how many rows have no record.
	Differing uint64 `json:"differing"`
}

// rowMatcher goes through the rows of a query beside the records of the stream. Both are in order, so neither is kept in memory.
type rowMatcher struct {
	columns  []string
	bySeq    bool
	final    bool // no rows can have come since the checkpoint was read
	next     func() (streamtable.Row, error, bool)
	stop     func()
	row      streamtable.Row
	has      bool
	compared *rowsCompared
	differs  func(seq uint64, key []byte, text string, args ...any)
}

func newRowMatcher(ctx context.Context, q *streamtable.Query, final bool, differs func(uint64, []byte, string, ...any)) (*rowMatcher, error) {
	m := &rowMatcher{columns: q.Columns, bySeq: q.Has("seq"), final: final, compared: &rowsCompared{Compared: q.Columns}, differs: differs}
	m.next, m.stop = iter.Pull2(q.Rows(ctx))
	if err := m.advance(); err != nil {
		m.stop() // it holds a connection
		return nil, err
	}
	return m, nil
}

func (m *rowMatcher) advance() (err error) {
	m.row, err, m.has = m.next()
	return err
}

func (m *rowMatcher) compares(column string) bool {
	for _, c := range m.columns {
		if c == column {
			return true
		}
	}
	return false
}

// before says where the current row stands: before the record, at it, or after it.
func (m *rowMatcher) order(seq uint64, key []byte) int {
	switch {
	case !m.bySeq:
		return bytes.Compare(m.row.Key, key)
	case m.row.Seq < seq:
		return -1
	case m.row.Seq > seq:
		return 1
	}
	return 0
}

func (m *rowMatcher) differ(seq uint64, key []byte, text string, args ...any) {
	m.compared.Differing++
	m.differs(seq, key, text, args...)
}

// record compares one record with its rows. key is nil, and the row's key and value are not looked at, when the producer was not asked.
func (m *rowMatcher) record(r stream.Record, asked, inTable bool) error {
	if err := m.extraRows(r); err != nil {
		return err
	}
	rows, different, err := m.rowsOf(r, asked)
	if err != nil {
		return err
	}
	switch {
	case rows > 1:
		m.differ(r.Seq, r.Key, "the query returns %d rows for it", rows)
	case rows == 0 && inTable:
		m.differ(r.Seq, r.Key, "the query returns no row for it, and it is not in quarantine")
	case rows == 1 && !inTable:
		m.differ(r.Seq, r.Key, "it is in quarantine, and the query returns a row for it")
	case rows == 1 && different != "":
		m.differ(r.Seq, r.Key, "%s", different)
	}
	return nil
}

// extraRows names the rows before the record: no record has them.
func (m *rowMatcher) extraRows(r stream.Record) error {
	for m.has && m.order(r.Seq, r.Key) < 0 {
		m.differ(m.row.Seq, m.row.Key, "the query returns a row for it, and the stream has no such record, or the row is there twice")
		if err := m.advance(); err != nil {
			return err
		}
	}
	return nil
}

// rowsOf counts the rows of the record, and says in what one differs from it.
func (m *rowMatcher) rowsOf(r stream.Record, asked bool) (rows int, different string, err error) {
	for m.has && m.order(r.Seq, r.Key) == 0 {
		rows++
		m.compared.Records++
		switch {
		case !asked:
		case m.compares("key") && !bytes.Equal(m.row.Key, r.Key):
			different = "the row has another key than the producer sends"
		case m.compares("value") && !bytes.Equal(m.row.Value, r.Value):
			different = "the row has another value than the producer sends"
		}
		if err := m.advance(); err != nil {
			return rows, different, err
		}
	}
	return rows, different, nil
}

// end looks at the rows behind the last record. Those of a job that has not ended may have been committed since.
func (m *rowMatcher) end() error {
	for m.has && m.final {
		m.differ(m.row.Seq, m.row.Key, "the query returns a row for it, and the stream has no such record, or the row is there twice")
		if err := m.advance(); err != nil {
			return err
		}
	}
	return nil
}
