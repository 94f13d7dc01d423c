package streamcmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

func newVerifyCommand() *cobra.Command {
	var (
		store   storeFlag
		client  clientFlags
		out     outputFlag
		table   string
		query   string
		offline bool
		without bool
		name    int
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use: "verify JOB", Short: "Compare a job's records with what its producer sends when it is asked again", Args: jobArguments(1), Annotations: map[string]string{"one": "job"},
		Long: `Ask the producer for the job's stream from the start, and compare number and digest of the records with the checkpoint; and the rows and the
quarantine with both. A job that has not ended is compared as far as it has come.

Rows are found in a table of the job store's database that "levada stream work" wrote (--table), or with a query of your own on the tables of
your handler (--query). The query returns seq, the record's number (Batch.Records[i].Seq), or key, its key as bytes or text, or both, and if you
want them compared byte by byte, value. $1 in it is the job's ID. It runs in a transaction that cannot write.

Exit codes: 0, rows were compared and everything is equal; 1, something differs, and the first records that do are named (a source that has
changed since differs, too); 3, what was compared is equal, but no rows were. With --checkpoint-only, the checkpoint and the producer are all
that you want compared, and equal is 0.`,
		Example: `  levada stream verify 5f2c81aa --table copied_users --offline
  levada stream verify 5f2c81aa --query 'select seq from orders where job = $1'
  levada stream verify 5f2c81aa --query 'select id as key from users' --target 127.0.0.1:50051
  levada stream verify 5f2c81aa --target 127.0.0.1:50051 --checkpoint-only`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			switch {
			case query == "" && cmd.Flags().Changed("query"):
				return commandline.UsageError(errors.New("--query is empty: expected one SELECT that returns seq or key"))
			case query != "" && table != "":
				return commandline.UsageError(errors.New("--query and --table exclude each other"))
			case without && (query != "" || table != ""):
				return commandline.UsageError(errors.New("--checkpoint-only excludes --query and --table"))
			case without && offline:
				return commandline.UsageError(errors.New("--checkpoint-only and --offline together leave nothing to compare: drop one of them"))
			}
			return store.withJob(cmd.Context(), args[0], func(d *database, status stream.Status) (err error) {
				if !offline && status.Target != "" && client.target != "" && client.target != status.Target {
					return commandline.UsageError(fmt.Errorf("%s is %s, but the job names its own producer, %s, which is the one that is compared: leave it out", commandline.Given(cmd.Flags().Lookup("target")), commandline.Printable(client.target), commandline.Printable(status.Target)))
				}
				if !offline && status.Target == "" && client.target == "" {
					return commandline.ExitError{Code: commandline.ExitUsage, Err: errors.New("the job names no producer: say with --target where it is, or --offline to compare the table with the checkpoint alone")}
				}
				conns, err := client.connections()
				if err != nil {
					return err
				}
				defer conns.Close()
				v := verification{d: d, status: status, names: name}
				if query != "" {
					if v.query, err = d.openQuery(cmd.Context(), query, status.ID); err != nil {
						return commandline.UsageError(fmt.Errorf("--query: %w", err))
					}
					defer v.query.Close()
					if offline && !v.query.Has("seq") {
						return commandline.UsageError(errors.New("--query without a column seq needs the producer, which knows the keys: return seq, or drop --offline"))
					}
				} else if !without {
					if v.table, err = tableOf(cmd.Context(), d, table, status.Stream); err != nil {
						return err
					}
				}
				if offline && v.table == nil && v.query == nil {
					return commandline.UsageError(fmt.Errorf("--offline leaves nothing to compare the checkpoint with: no table %s was found; name the rows with --table or --query, or drop --offline", commandline.Printable(status.Stream)))
				}
				if v.table != nil {
					defer v.table.Close()
				}
				if !offline {
					ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
					defer cancel()
					v.producer = func(upTo stream.Checkpoint) iter.Seq2[stream.Record, error] {
						return readAgain(ctx, conns, status.Job, upTo)
					}
				}
				result, err := v.run(cmd.Context())
				if err != nil {
					return err
				}
				if out.json() {
					err = encode(cmd.OutOrStdout(), true, result)
				} else {
					err = result.write(cmd.OutOrStdout())
				}
				switch {
				case err != nil:
				case !result.OK:
					err = commandline.ExitError{Code: commandline.ExitProblems}
				case !result.rowsCompared() && !without:
					err = commandline.ExitError{Code: exitNoRows}
				}
				return err
			})
		},
	}
	flags := cmd.Flags()
	store.register(flags)
	client.register(flags, "the producer, if the job names none")
	out.register(flags)
	flags.StringVar(&table, "table", "", "the table with the records (default: the one that has the stream's name, if there is one)")
	flags.StringVar(&query, "query", "", "a query that returns seq or key, and optionally value, of the rows that your handler wrote; $1 is the job's ID")
	flags.BoolVar(&without, "checkpoint-only", false, "compare the checkpoint with the producer, and no rows")
	flags.BoolVar(&offline, "offline", false, "do not ask the producer")
	flags.IntVar(&name, "names", 10, "how many records that differ are named")
	flags.DurationVar(&timeout, "timeout", time.Hour, "how long the producer may take for the whole stream")
	return cmd
}

// exitNoRows: what was compared is equal, but no rows were compared.
const exitNoRows = 3

// tableOf opens the table of a stream's records, or returns nil if it was not named and there is none.
func tableOf(ctx context.Context, d *database, name, streamName string) (streamtable.Reader, error) {
	if name != "" {
		t, err := d.openTable(ctx, name)
		if errors.Is(err, streamtable.ErrNoTable) {
			return nil, commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("--table: %w", err)}
		}
		return t, err
	}
	t, err := d.openTable(ctx, streamName)
	if err != nil {
		return nil, nil // a table of that name that is not ours, or a name that no table has, says nothing
	}
	return t, nil
}

// sums are the number and digest of records.
type sums struct {
	Records uint64 `json:"records"`
	Digest  string `json:"digest"`
	digest  stream.Digest
}

func (s *sums) add(r stream.Record) {
	s.Records++
	s.digest.Add(r)
}

// verified is the outcome of a verification.
type verified struct {
	OK         bool   `json:"ok"`
	Job        string `json:"job"`
	State      string `json:"state"`
	Checkpoint sums   `json:"checkpoint"`
	// Producer is what it sends now. Nil: it was not asked.
	Producer *sums `json:"producer,omitempty"`
	// Table and Quarantine are what is stored; together they must be what the checkpoint says. Nil: no table was found.
	Table     *sums  `json:"table,omitempty"`
	TableName string `json:"tableName,omitempty"`
	// Rows is what came of --query.
	Rows *rowsCompared `json:"rows,omitempty"`
	// Compared says what was compared with the checkpoint: producer, table, rows.
	Compared   []string `json:"compared"`
	Quarantine uint64   `json:"quarantine"`
	// Differences name records, the first ones only.
	Differences []difference `json:"differences,omitempty"`
	// Notes are findings that are not losses.
	Notes []string `json:"notes,omitempty"`
}

type difference struct {
	Seq  uint64 `json:"seq,omitempty"`
	Key  []byte `json:"key,omitempty"`
	What string `json:"what"`
}

type verification struct {
	d        *database
	status   stream.Status
	table    streamtable.Reader
	query    *streamtable.Query
	producer func(upTo stream.Checkpoint) iter.Seq2[stream.Record, error] // nil: not asked
	names    int
}

func (v *verification) run(ctx context.Context) (*verified, error) {
	rows, err := v.d.offsets().Quarantined(ctx, v.status.ID, 1<<30)
	if err != nil {
		return nil, err
	}
	quarantine := map[uint64]stream.Quarantined{}
	for _, q := range rows {
		quarantine[q.Seq] = q
	}
	checkpoint, err := readCheckpoint(ctx, v.d, v.status.ID)
	if err != nil {
		return nil, err
	}
	if checkpoint.Seq == 0 && v.status.Progress.Records > 0 {
		return nil, fmt.Errorf("job %s has %d records, and no checkpoint in this database: its worker keeps records elsewhere; verify it there", v.status.ID, v.status.Progress.Records)
	}
	out := &verified{Job: v.status.ID, State: string(v.status.State), Quarantine: uint64(len(quarantine)),
		Checkpoint: sums{Records: checkpoint.Seq, Digest: checkpoint.Digest.String(), digest: checkpoint.Digest}}
	note := func(seq uint64, key []byte, text string, args ...any) {
		if len(out.Differences) < v.names {
			out.Differences = append(out.Differences, difference{seq, append([]byte(nil), key...), fmt.Sprintf(text, args...)})
		}
	}
	out.OK = true
	if checkpoint.Bad != out.Quarantine {
		out.OK = false
		note(0, nil, "the checkpoint counts %d records in quarantine, and %d are there", checkpoint.Bad, out.Quarantine)
	}
	if v.table != nil {
		out.TableName = v.table.Name()
		out.Table = &sums{}
		if err := v.sumTable(ctx, out, quarantine, checkpoint); err != nil {
			return nil, err
		}
		out.Compared = append(out.Compared, "table")
	}
	var matcher *rowMatcher
	if v.query != nil {
		if matcher, err = newRowMatcher(ctx, v.query, v.status.State.Final(), note); err != nil {
			return nil, fmt.Errorf("--query: %w", err)
		}
		defer matcher.stop()
		out.Rows, out.Compared = matcher.compared, append(out.Compared, "rows")
	}
	if v.producer != nil {
		out.Producer = &sums{}
		if err := v.sumProducer(out, quarantine, checkpoint, matcher); err != nil {
			return nil, err
		}
		out.Compared = append(out.Compared, "producer")
	} else if matcher != nil {
		for seq := uint64(1); seq <= checkpoint.Seq; seq++ {
			q, aside := quarantine[seq]
			if err := matcher.record(stream.Record{Seq: seq}, false, !aside || q.State == stream.Replayed); err != nil {
				return nil, fmt.Errorf("--query: %w", err)
			}
		}
	}
	if matcher != nil {
		if err := matcher.end(); err != nil {
			return nil, fmt.Errorf("--query: %w", err)
		}
		out.OK = out.OK && matcher.compared.Differing == 0
	}
	if matcher == nil && !out.OK && (out.Table != nil || v.producer != nil) {
		if err := v.nameDifferences(ctx, note, quarantine, checkpoint); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// sumTable adds up the rows. For a record that is, or was, in quarantine its quarantined form counts, which is what the checkpoint has.
func (v *verification) sumTable(ctx context.Context, out *verified, quarantine map[uint64]stream.Quarantined, checkpoint stream.Checkpoint) error {
	total, replayed := sums{}, 0
	for r, err := range v.table.Rows(ctx, v.status.ID, false) {
		if err != nil {
			return err
		}
		if r.Seq > checkpoint.Seq {
			continue // committed since the checkpoint was read
		}
		out.Table.add(r)
		if q, ok := quarantine[r.Seq]; ok {
			if q.State == stream.Replayed {
				replayed++
				continue
			}
		}
		total.add(r)
	}
	wanted := 0
	for _, q := range quarantine {
		if q.Seq <= checkpoint.Seq {
			total.add(stream.Record{Seq: q.Seq, Key: q.Key, Value: q.Payload})
			if q.State == stream.Replayed {
				wanted++
			}
		}
	}
	out.Table.Digest = out.Table.digest.String()
	if total.Records != checkpoint.Seq || total.digest != checkpoint.Digest || replayed != wanted {
		out.OK = false
	}
	return nil
}

// sumProducer adds up what the producer sends, as far as the checkpoint goes.
func (v *verification) sumProducer(out *verified, quarantine map[uint64]stream.Quarantined, checkpoint stream.Checkpoint, rows *rowMatcher) error {
	asThen, mended, more := sums{}, 0, false
	for r, err := range v.producer(checkpoint) {
		if err != nil {
			return err
		}
		if r.Seq > checkpoint.Seq {
			more = true
			break
		}
		out.Producer.add(r)
		if rows != nil {
			q, aside := quarantine[r.Seq]
			if err := rows.record(r, true, !aside || q.State == stream.Replayed); err != nil {
				return fmt.Errorf("--query: %w", err)
			}
		}
		if q, ok := quarantine[r.Seq]; ok && q.Class == stream.ClassProducer && bytes.Equal(q.Key, r.Key) {
			if r.Bad == "" {
				mended++
			}
			r.Value = nil // the checkpoint has it without one
		}
		asThen.add(r)
	}
	out.Producer.Digest = out.Producer.digest.String()
	if asThen.Records != checkpoint.Seq || asThen.digest != checkpoint.Digest {
		out.OK = false
	}
	if mended > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("the producer can now make %d records that it could not make then: levada stream quarantine replay %s --all", mended, shortID(v.status.ID)))
	}
	switch {
	case more && v.status.State == stream.Completed:
		out.Notes = append(out.Notes, "the stream has more records now than it had when the job was completed: submit a new job for them")
	case more || !checkpoint.Done:
		out.Notes = append(out.Notes, fmt.Sprintf("the job is %s: it is compared as far as it has come", v.status.State))
	}
	return nil
}

// nameDifferences goes through stream and table side by side, in order.
func (v *verification) nameDifferences(ctx context.Context, note func(uint64, []byte, string, ...any), quarantine map[uint64]stream.Quarantined, checkpoint stream.Checkpoint) error {
	var sent iter.Seq2[stream.Record, error] = func(func(stream.Record, error) bool) {}
	stored := sent
	if v.producer != nil {
		sent = v.producer(checkpoint)
	}
	if v.table != nil {
		stored = v.table.Rows(ctx, v.status.ID, true)
	}
	nextSent, stopSent := iter.Pull2(sent)
	defer stopSent()
	nextStored, stopStored := iter.Pull2(stored)
	defer stopStored()
	a, aErr, aOK := nextSent()
	b, bErr, bOK := nextStored()
	differences := 0
	name := func(seq uint64, key []byte, text string, args ...any) {
		differences++
		note(seq, key, text, args...)
	}
	for seq := uint64(1); seq <= checkpoint.Seq && differences < v.names; seq++ {
		if err := errors.Join(aErr, bErr); err != nil {
			return err
		}
		var here []stream.Record
		for bOK && b.Seq <= seq {
			if b.Seq == seq {
				here = append(here, b)
			}
			if b, bErr, bOK = nextStored(); bErr != nil {
				return bErr
			}
		}
		q, aside := quarantine[seq]
		if v.table != nil {
			switch inTable := !aside || q.State == stream.Replayed; {
			case len(here) > 1:
				name(seq, here[0].Key, "it is %d times in the table", len(here))
			case len(here) == 0 && inTable:
				name(seq, nil, "it is neither in the table nor in quarantine")
			case len(here) == 1 && !inTable:
				name(seq, here[0].Key, "it is in quarantine (%s), and in the table as well", q.State)
			}
		}
		if v.producer == nil {
			continue
		}
		if !aOK || a.Seq != seq {
			name(seq, nil, "the producer does not send it any more, nor what comes after")
			return nil
		}
		kept := stream.Record{Key: a.Key, Value: a.Value}
		switch {
		case aside:
			kept = stream.Record{Key: q.Key, Value: q.Payload}
			if q.Class == stream.ClassProducer {
				kept.Value = a.Value
			}
		case len(here) > 0:
			kept = here[0]
		}
		if !bytes.Equal(kept.Key, a.Key) {
			name(seq, a.Key, "the producer now sends it with this key, and it was stored with key %s", bytesText(kept.Key))
		} else if !bytes.Equal(kept.Value, a.Value) {
			name(seq, a.Key, "the producer now sends another value (%d bytes) than was stored (%d bytes)", len(a.Value), len(kept.Value))
		}
		a, aErr, aOK = nextSent()
	}
	if differences == 0 {
		note(0, nil, "the records that are there are equal, and yet the checkpoint names others: the source changed, or the digest was written by something else")
	}
	return nil
}

func (r *verified) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name string, s *sums) {
		if s != nil {
			fmt.Fprintf(w, "%s\t%s records\tdigest %s\n", name, humanize.Comma(int64(s.Records)), s.Digest)
		}
	}
	fmt.Fprintf(w, "job\t%s\t%s\n", commandline.Printable(r.Job), r.State)
	line("checkpoint", &r.Checkpoint)
	line("producer", r.Producer)
	line("table "+r.TableName, r.Table)
	if r.Rows != nil {
		fmt.Fprintf(w, "rows\t%s records\tcompared by %s\n", humanize.Comma(int64(r.Rows.Records)), strings.Join(r.Rows.Compared, ", "))
	}
	fmt.Fprintf(w, "quarantine\t%s records\t\n", humanize.Comma(int64(r.Quarantine)))
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintln(out, "note:", n)
	}
	for _, d := range r.Differences {
		switch {
		case d.Seq == 0:
			fmt.Fprintln(out, "differs:", d.What)
		case len(d.Key) == 0:
			fmt.Fprintf(out, "differs: record %s: %s\n", humanize.Comma(int64(d.Seq)), d.What)
		default:
			fmt.Fprintf(out, "differs: record %s (key %s): %s\n", humanize.Comma(int64(d.Seq)), shorten(bytesText(d.Key), 60), d.What)
		}
	}
	_, err := fmt.Fprintln(out, r.verdict())
	return err
}

func (r *verified) rowsCompared() bool { return r.Table != nil || r.Rows != nil }

// verdict claims what was compared, and nothing else.
func (r *verified) verdict() string {
	var with []string
	if r.Table != nil {
		with = append(with, "table "+r.TableName)
	}
	if r.Rows != nil {
		with = append(with, "the rows of --query ("+strings.Join(r.Rows.Compared, ", ")+")")
	}
	if r.Producer != nil {
		with = append(with, "the producer")
	}
	compared := "the checkpoint and " + strings.Join(with, " and ")
	switch {
	case !r.OK && r.Rows != nil:
		return fmt.Sprintf("NOT EQUAL: %s (%s records differ by rows)", compared, humanize.Comma(int64(r.Rows.Differing)))
	case !r.OK:
		return "NOT EQUAL: " + compared
	case !r.rowsCompared():
		return "equal: " + compared + "; no rows were compared: whether a table has the records is not known (--table, --query)"
	}
	return fmt.Sprintf("equal: %s: %s records, each once, %d of them put into quarantine at first", compared, humanize.Comma(int64(r.Checkpoint.Records)), r.Quarantine)
}

// endWithin is how long a producer that has sent all records of a job may take to say that these were all. It has none to say if it follows
// a file or a table by now.
const endWithin = 5 * time.Second

// readAgain reads a job's stream from the start, as far as the job has come. Of a complete job it also reads what has come since.
func readAgain(ctx context.Context, conns *stream.Connections, job stream.Job, upTo stream.Checkpoint) iter.Seq2[stream.Record, error] {
	return func(yield func(stream.Record, error) bool) {
		if upTo.Seq == 0 {
			return
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var failures atomic.Int32 // in a row
		r, err := stream.NewReader(stream.ReaderConfig{
			Dial: conns.Dial, Stream: job.Stream, Target: job.Target, Query: job.Query, Name: job.ID, Logger: slog.New(slog.DiscardHandler),
			MaxRecord: 63 << 20, // whatever the job's worker may have taken
			Retry:     stream.Backoff{Min: 200 * time.Millisecond, Max: time.Second}, NoProgress: stream.Never, DeniedGrace: stream.AtOnce,
			Observe: func(e stream.Event) {
				switch e.Kind {
				case stream.EventCommitted:
					failures.Store(0)
				case stream.EventRetry: // unlike a job, a person does not wait until a producer is there again
					if failures.Add(1) > 8 {
						cancel(e.Err)
					}
				}
			},
		}, stream.Checkpoint{})
		if err != nil {
			yield(stream.Record{}, err)
			return
		}
		defer r.Close()
		for at := uint64(0); ; {
			d, err := r.Next(ctx)
			if err == io.EOF || ctx.Err() != nil && at >= upTo.Seq {
				return
			}
			if err != nil {
				yield(stream.Record{}, fmt.Errorf("ask the producer again: %w", err))
				return
			}
			for _, record := range d.Records {
				if !yield(record, nil) {
					return
				}
				if at = record.Seq; at == upTo.Seq {
					if !upTo.Done {
						return
					}
					time.AfterFunc(endWithin, func() { cancel(nil) })
				}
			}
		}
	}
}
