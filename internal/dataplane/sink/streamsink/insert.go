package streamsink

import (
	"bytes"
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// insertion adds what is new of some blocks to the log, within one transaction and under the turn of the log.
type insertion struct {
	log       *log
	tx        *sql.Tx
	now       time.Time
	rows, ids inserter

	last    uint64 // the position that was given last
	bytes   int64  // that were added, with overhead
	changed bool   // something of the blocks was new; also a block without messages is, since it moves floors
}

func newInsertion(l *log, tx *sql.Tx, last uint64) *insertion {
	return &insertion{
		log: l, tx: tx, now: time.Now(), last: last,
		rows: inserter{tx: tx, head: "insert into log (pos, at, value) values "},
		ids:  inserter{tx: tx, head: "insert into ids (n, at, id) values "},
	}
}

func (in *insertion) blocks(ctx context.Context, blocks []*flow.Block) error {
	l := in.log
	defer func() { clear(l.scratch[:cap(l.scratch)]) }() // holds no message after Write
	for _, block := range blocks {
		// Admit deletes from the block; the caller may need its block again.
		b := *block
		l.scratch = append(l.scratch[:0], b.Messages...)
		b.Messages, b.Prev = l.scratch, 0
		l.seen.Admit(&b, in.now)
		l.duplicates.Add(int64(len(block.Messages) - len(b.Messages)))
		if len(b.Messages) == 0 && len(block.Messages) > 0 {
			continue
		}
		in.changed = true
		for i := range b.Messages {
			if err := in.message(ctx, &b.Messages[i], b.ByID); err != nil {
				return err
			}
		}
	}
	if err := in.rows.flush(ctx); err != nil {
		return err
	}
	return in.finishIDs(ctx)
}

// message adds a row under the next position, and the id of a message that has no position in its source.
func (in *insertion) message(ctx context.Context, m *flow.Message, byID bool) error {
	l := in.log
	value := m.Value
	if l.cfg.Payload != Value {
		l.record = l.cfg.Payload.append(l.record[:0], m)
		value = bytes.Clone(l.record) // the rows of a statement are kept until it is executed
	}
	if value == nil {
		value = []byte{} // a column that is not null
	}
	in.last++
	in.bytes += int64(len(value)) + overhead
	if err := in.rows.add(ctx, int64(in.last), in.now.UnixNano(), value); err != nil || !byID {
		return err
	}
	return in.ids.add(ctx, nil, in.now.UnixNano(), m.ID)
}

// finishIDs writes the ids, and removes those that IDWindow and MaxIDs do not cover any more. identity.Seen forgets by the same rule.
func (in *insertion) finishIDs(ctx context.Context) error {
	if !in.ids.any {
		return nil
	}
	if err := in.ids.flush(ctx); err != nil {
		return err
	}
	const forget = "delete from ids where at < ? or n <= (select max(n) from ids) - ?"
	_, err := in.tx.ExecContext(ctx, forget, in.now.Add(-in.log.cfg.IDWindow).UnixNano(), in.log.cfg.MaxIDs)
	return err
}

// inserter inserts rows of three columns, many with one statement.
type inserter struct {
	tx   *sql.Tx
	head string // the statement up to its values
	args []any  // of the rows that are not inserted yet, three each
	any  bool   // a row was added
}

// together is how many rows one statement inserts, so that the cost of a call counts little.
const together = 64

func (i *inserter) add(ctx context.Context, row ...any) error {
	i.args, i.any = append(i.args, row...), true
	if len(i.args) < 3*together {
		return nil
	}
	return i.flush(ctx)
}

func (i *inserter) flush(ctx context.Context) error {
	if len(i.args) == 0 {
		return nil
	}
	places := strings.Repeat("(?,?,?),", len(i.args)/3)
	_, err := i.tx.ExecContext(ctx, i.head+places[:len(places)-1], i.args...)
	i.args = i.args[:0]
	return err
}
