package streamcmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

// verification compares one job.
type verification struct {
	d        *connect.Database
	status   stream.Status
	table    streamtable.Reader                                           // nil: none is compared
	query    *streamtable.Query                                           // nil: none is compared
	producer func(upTo stream.Checkpoint) iter.Seq2[stream.Record, error] // nil: not asked
	names    int                                                          // how many records that differ are named

	// What run reads first. Records up to checkpoint.Seq are compared; those in quarantine have their place there, and are not in the table unless they
	// were replayed.
	checkpoint stream.Checkpoint
	quarantine map[uint64]stream.Quarantined
	out        *verified
}

func (v *verification) close() {
	if v.query != nil {
		v.query.Close()
	}
	if v.table != nil {
		v.table.Close()
	}
}

func (v *verification) run(ctx context.Context) (*verified, error) {
	if err := v.readSink(ctx); err != nil {
		return nil, err
	}
	v.out = &verified{OK: true, Job: v.status.ID, State: string(v.status.State), Quarantine: uint64(len(v.quarantine)), Checkpoint: streamtable.Sums{Records: v.checkpoint.Seq, Digest: v.checkpoint.Digest}}
	if v.checkpoint.Bad != v.out.Quarantine {
		v.out.OK = false
		v.differs(0, nil, "the checkpoint counts %d records in quarantine, and %d are there", v.checkpoint.Bad, v.out.Quarantine)
	}
	if v.table != nil {
		if err := v.sumTable(ctx); err != nil {
			return nil, err
		}
		v.out.Compared = append(v.out.Compared, "table")
	}
	if v.query != nil {
		return v.out, v.compareRows(ctx)
	}
	if err := v.sumProducer(nil); err != nil {
		return nil, err
	}
	if !v.out.OK && (v.out.Table != nil || v.producer != nil) {
		return v.out, v.nameDifferences(ctx)
	}
	return v.out, nil
}

// readSink reads what is stored about the job. The quarantine is read first: the checkpoint may then count more records, and never fewer.
func (v *verification) readSink(ctx context.Context) error {
	rows, err := v.d.Offsets().Quarantined(ctx, v.status.ID, 1<<30)
	if err != nil {
		return err
	}
	v.quarantine = map[uint64]stream.Quarantined{}
	for _, q := range rows {
		v.quarantine[q.Seq] = q
	}
	if v.checkpoint, err = readCheckpoint(ctx, v.d, v.status.ID); err != nil {
		return err
	}
	if v.checkpoint.Seq == 0 && v.status.Progress.Records > 0 {
		return fmt.Errorf("job %s has %d records, and no checkpoint in this database: its worker keeps records elsewhere; verify it there", v.status.ID, v.status.Progress.Records)
	}
	return nil
}

// differs names a record that differs, if not enough are named already.
func (v *verification) differs(seq uint64, key []byte, text string, args ...any) {
	if len(v.out.Differences) < v.names {
		v.out.Differences = append(v.out.Differences, difference{seq, append([]byte(nil), key...), fmt.Sprintf(text, args...)})
	}
}

// inTable reports whether the record belongs into the table: it was never in quarantine, or was replayed.
func (v *verification) inTable(seq uint64) bool {
	q, quarantined := v.quarantine[seq]
	return !quarantined || q.State == stream.Replayed
}

// compareRows compares the rows of --query with the producer's records, or with the numbers alone if it is not asked.
func (v *verification) compareRows(ctx context.Context) error {
	rows, err := newRowMatcher(ctx, v.query, v.status.State.Final(), v.differs)
	if err != nil {
		return fmt.Errorf("--query: %w", err)
	}
	defer rows.stop()
	v.out.Rows, v.out.Compared = rows.compared, append(v.out.Compared, "rows")
	if v.producer != nil {
		err = v.sumProducer(rows)
	} else {
		for seq := uint64(1); seq <= v.checkpoint.Seq && err == nil; seq++ {
			err = rowsError(rows.record(stream.Record{Seq: seq}, false, v.inTable(seq)))
		}
	}
	if err != nil {
		return err
	}
	if err := rows.end(); err != nil {
		return rowsError(err)
	}
	v.out.OK = v.out.OK && rows.compared.Differing == 0
	return nil
}

func rowsError(err error) error {
	if err != nil {
		return fmt.Errorf("--query: %w", err)
	}
	return nil
}

// sumTable adds up the rows. For a record that is, or was, in quarantine its quarantined form counts, which is what the checkpoint has.
func (v *verification) sumTable(ctx context.Context) error {
	v.out.TableName, v.out.Table = v.table.Name(), &streamtable.Sums{}
	total, replayed := streamtable.Sums{}, 0
	for r, err := range v.table.Rows(ctx, v.status.ID, false) {
		if err != nil {
			return err
		}
		if r.Seq > v.checkpoint.Seq {
			continue // committed since the checkpoint was read
		}
		v.out.Table.Add(r)
		if q, ok := v.quarantine[r.Seq]; ok {
			if q.State == stream.Replayed {
				replayed++
				continue
			}
		}
		total.Add(r)
	}
	wanted := 0
	for _, q := range v.quarantine {
		if q.Seq <= v.checkpoint.Seq {
			total.Add(stream.Record{Seq: q.Seq, Key: q.Key, Value: q.Payload})
			if q.State == stream.Replayed {
				wanted++
			}
		}
	}
	if total != v.out.Checkpoint || replayed != wanted {
		v.out.OK = false
	}
	return nil
}

// sumProducer adds up what the producer sends, as far as the checkpoint goes, and compares each record with the rows, if there are any.
func (v *verification) sumProducer(rows *rowMatcher) error {
	if v.producer == nil {
		return nil
	}
	v.out.Producer, v.out.Compared = &streamtable.Sums{}, append(v.out.Compared, "producer")
	asThen, fixed, more := streamtable.Sums{}, 0, false
	for r, err := range v.producer(v.checkpoint) {
		if err != nil {
			return err
		}
		if r.Seq > v.checkpoint.Seq {
			more = true
			break
		}
		v.out.Producer.Add(r)
		if rows != nil {
			if err := rows.record(r, true, v.inTable(r.Seq)); err != nil {
				return rowsError(err)
			}
		}
		if q, ok := v.quarantine[r.Seq]; ok && q.Class == stream.ClassProducer && bytes.Equal(q.Key, r.Key) {
			if r.Bad == "" {
				fixed++
			}
			r.Value = nil // the checkpoint has it without one
		}
		asThen.Add(r)
	}
	if asThen != v.out.Checkpoint {
		v.out.OK = false
	}
	v.noteProducer(fixed, more)
	return nil
}

// noteProducer notes what of the producer's answer is no difference. fixed counts records that it could not make before; more says that it has others
// after the checkpoint.
func (v *verification) noteProducer(fixed int, more bool) {
	if fixed > 0 {
		v.out.Notes = append(v.out.Notes, fmt.Sprintf("the producer can now make %d records that it could not make then: levada stream quarantine replay %s --all", fixed, jobtext.ShortID(v.status.ID)))
	}
	switch {
	case more && v.status.State == stream.Completed:
		v.out.Notes = append(v.out.Notes, "the stream has more records now than it had when the job was completed: submit a new job for them")
	case more || !v.checkpoint.Done:
		v.out.Notes = append(v.out.Notes, fmt.Sprintf("the job is %s: it is compared as far as it has come", v.status.State))
	}
}

// nameDifferences goes through stream and table side by side, in order.
func (v *verification) nameDifferences(ctx context.Context) error {
	var nothing iter.Seq2[stream.Record, error] = func(func(stream.Record, error) bool) {}
	inStream, inTable := nothing, nothing
	if v.producer != nil {
		inStream = v.producer(v.checkpoint)
	}
	if v.table != nil {
		inTable = v.table.Rows(ctx, v.status.ID, true)
	}
	sent, stored := newRecordCursor(inStream), newRecordCursor(inTable)
	defer sent.stop()
	defer stored.stop()
	named := 0
	name := func(seq uint64, key []byte, text string, args ...any) {
		named++
		v.differs(seq, key, text, args...)
	}
	for seq := uint64(1); seq <= v.checkpoint.Seq && named < v.names; seq++ {
		rows := stored.upTo(seq)
		if err := errors.Join(sent.err, stored.err); err != nil {
			return err
		}
		if v.table != nil {
			v.compareTable(seq, rows, name)
		}
		if v.producer == nil {
			continue
		}
		if !sent.ok || sent.at.Seq != seq {
			name(seq, nil, "the producer does not send it any more, nor what comes after")
			return nil
		}
		v.compareStored(sent.at, rows, name)
		sent.advance()
	}
	if named == 0 {
		v.differs(0, nil, "the records that are there are equal, and yet the checkpoint names others: the source changed, or the digest was written by something else")
	}
	return nil
}

// compareTable names the record if the table has it too often, or does not have it.
func (v *verification) compareTable(seq uint64, rows []stream.Record, name func(uint64, []byte, string, ...any)) {
	switch inTable := v.inTable(seq); {
	case len(rows) > 1:
		name(seq, rows[0].Key, "it is %d times in the table", len(rows))
	case len(rows) == 0 && inTable:
		name(seq, nil, "it is neither in the table nor in quarantine")
	case len(rows) == 1 && !inTable:
		name(seq, rows[0].Key, "it is in quarantine (%s), and in the table as well", v.quarantine[seq].State)
	}
}

// compareStored names the record if what is stored of it, in quarantine or else in the table, is not what the producer sends now.
func (v *verification) compareStored(sent stream.Record, rows []stream.Record, name func(uint64, []byte, string, ...any)) {
	kept := stream.Record{Key: sent.Key, Value: sent.Value}
	q, quarantined := v.quarantine[sent.Seq]
	switch {
	case quarantined:
		kept = stream.Record{Key: q.Key, Value: q.Payload}
		if q.Class == stream.ClassProducer {
			kept.Value = sent.Value
		}
	case len(rows) > 0:
		kept = rows[0]
	}
	if !bytes.Equal(kept.Key, sent.Key) {
		name(sent.Seq, sent.Key, "the producer now sends it with this key, and it was stored with key %s", jobtext.Bytes(kept.Key))
	} else if !bytes.Equal(kept.Value, sent.Value) {
		name(sent.Seq, sent.Key, "the producer now sends another value (%d bytes) than was stored (%d bytes)", len(sent.Value), len(kept.Value))
	}
}

// recordCursor stands at one record of an ordered sequence.
type recordCursor struct {
	at   stream.Record // valid while ok
	ok   bool          // false at the end, and after an error
	err  error
	next func() (stream.Record, error, bool)
	stop func()
}

func newRecordCursor(records iter.Seq2[stream.Record, error]) *recordCursor {
	c := &recordCursor{}
	c.next, c.stop = iter.Pull2(records)
	c.advance()
	return c
}

func (c *recordCursor) advance() {
	if c.at, c.err, c.ok = c.next(); c.err != nil {
		c.ok = false
	}
}

// upTo moves behind the record of that number, and returns all that had it.
func (c *recordCursor) upTo(seq uint64) (found []stream.Record) {
	for c.ok && c.at.Seq <= seq {
		if c.at.Seq == seq {
			found = append(found, c.at)
		}
		c.advance()
	}
	return found
}
