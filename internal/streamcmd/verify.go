package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

type verifyFlags struct {
	store   connect.StoreFlags
	client  connect.ProducerFlags
	out     outputFlag
	table   string
	query   string
	offline bool
	without bool // rows: only the checkpoint is compared
	names   int
	timeout time.Duration
}

func newVerifyCommand() *cobra.Command {
	var f verifyFlags
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
			if err := f.check(cmd); err != nil {
				return err
			}
			return f.store.WithJob(cmd.Context(), args[0], func(d *connect.Database, job stream.Status) error { return f.run(cmd, d, job) })
		},
	}
	flags := cmd.Flags()
	f.store.Register(flags)
	f.client.Register(flags, "the producer, if the job names none")
	f.out.register(flags)
	flags.StringVar(&f.table, "table", "", "the table with the records (default: the one that has the stream's name, if there is one)")
	flags.StringVar(&f.query, "query", "", "a query that returns seq or key, and optionally value, of the rows that your handler wrote; $1 is the job's ID")
	flags.BoolVar(&f.without, "checkpoint-only", false, "compare the checkpoint with the producer, and no rows")
	flags.BoolVar(&f.offline, "offline", false, "do not ask the producer")
	flags.IntVar(&f.names, "names", 10, "how many records that differ are named")
	flags.DurationVar(&f.timeout, "timeout", time.Hour, "how long the producer may take for the whole stream")
	return cmd
}

// check refuses flags that contradict each other.
func (f *verifyFlags) check(cmd *cobra.Command) error {
	switch {
	case f.query == "" && cmd.Flags().Changed("query"):
		return commandline.Usagef("--query is empty: expected one SELECT that returns seq or key")
	case f.query != "" && f.table != "":
		return commandline.Usagef("--query and --table exclude each other")
	case f.without && (f.query != "" || f.table != ""):
		return commandline.Usagef("--checkpoint-only excludes --query and --table")
	case f.without && f.offline:
		return commandline.Usagef("--checkpoint-only and --offline together leave nothing to compare: drop one of them")
	}
	return nil
}

// checkTarget refuses a job without a producer, and a target that is not the job's own.
func (f *verifyFlags) checkTarget(cmd *cobra.Command, job *stream.Status) error {
	switch {
	case f.offline:
	case job.Target != "" && f.client.Target != "" && f.client.Target != job.Target:
		return commandline.Usagef("%s is %s, but the job names its own producer, %s, which is the one that is compared: leave it out", commandline.Given(cmd.Flags().Lookup("target")), commandline.Printable(f.client.Target), commandline.Printable(job.Target))
	case job.Target == "" && f.client.Target == "":
		return commandline.Usagef("the job names no producer: say with --target where it is, or --offline to compare the table with the checkpoint alone")
	}
	return nil
}

func (f *verifyFlags) run(cmd *cobra.Command, d *connect.Database, job stream.Status) error {
	if err := f.checkTarget(cmd, &job); err != nil {
		return err
	}
	conns, err := f.client.Connections()
	if err != nil {
		return err
	}
	defer conns.Close()
	v := verification{d: d, status: job, names: f.names}
	defer v.close()
	if err := f.openRows(cmd.Context(), &v); err != nil {
		return err
	}
	if !f.offline {
		ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
		defer cancel()
		v.producer = func(upTo stream.Checkpoint) iter.Seq2[stream.Record, error] {
			return readAgain(ctx, conns, job.Job, upTo)
		}
	}
	result, err := v.run(cmd.Context())
	if err != nil {
		return err
	}
	if f.out.json() {
		err = commandline.WriteJSON(cmd.OutOrStdout(), true, result)
	} else {
		err = result.write(cmd.OutOrStdout())
	}
	switch {
	case err != nil:
		return err
	case !result.OK:
		return commandline.Problems()
	case !result.rowsCompared() && !f.without:
		return commandline.ExitError{Code: exitNoRows}
	}
	return nil
}

// openRows opens the query or the table that is compared, if any.
func (f *verifyFlags) openRows(ctx context.Context, v *verification) (err error) {
	switch {
	case f.query != "":
		if v.query, err = v.d.OpenQuery(ctx, f.query, v.status.ID); err != nil {
			return commandline.Usagef("--query: %w", err)
		}
		if f.offline && !v.query.Has("seq") {
			return commandline.Usagef("--query without a column seq needs the producer, which knows the keys: return seq, or drop --offline")
		}
	case !f.without:
		if v.table, err = tableOf(ctx, v.d, f.table, v.status.Stream); err != nil {
			return err
		}
	}
	if f.offline && v.table == nil && v.query == nil {
		return commandline.Usagef("--offline leaves nothing to compare the checkpoint with: no table %s was found; name the rows with --table or --query, or drop --offline", commandline.Printable(v.status.Stream))
	}
	return nil
}

// exitNoRows: what was compared is equal, but no rows were compared.
const exitNoRows = 3

// tableOf opens the table of a stream's records, or returns nil if it was not named and there is none.
func tableOf(ctx context.Context, d *connect.Database, name, streamName string) (streamtable.Reader, error) {
	if name != "" {
		t, err := d.OpenTable(ctx, name)
		if errors.Is(err, streamtable.ErrNoTable) {
			return nil, commandline.Usagef("--table: %w", err)
		}
		return t, err
	}
	t, err := d.OpenTable(ctx, streamName)
	if err != nil {
		return nil, nil // a table of that name that is not ours, or a name that no table has, says nothing
	}
	return t, nil
}

// verified is the outcome of a verification.
type verified struct {
	OK         bool             `json:"ok"`
	Job        string           `json:"job"`
	State      string           `json:"state"`
	Checkpoint streamtable.Sums `json:"checkpoint"`
	// Producer is what it sends now. Nil: it was not asked.
	Producer *streamtable.Sums `json:"producer,omitempty"`
	// Table and Quarantine are what is stored; together they must be what the checkpoint says. Nil: no table was found.
	Table     *streamtable.Sums `json:"table,omitempty"`
	TableName string            `json:"tableName,omitempty"`
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

func (d *difference) text() string {
	switch {
	case d.Seq == 0:
		return d.What
	case len(d.Key) == 0:
		return fmt.Sprintf("record %s: %s", humanize.Comma(int64(d.Seq)), d.What)
	}
	return fmt.Sprintf("record %s (key %s): %s", humanize.Comma(int64(d.Seq)), jobtext.Shorten(jobtext.Bytes(d.Key), 60), d.What)
}

func (r *verified) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name string, s *streamtable.Sums) {
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
	for i := range r.Differences {
		fmt.Fprintln(out, "differs:", r.Differences[i].text())
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
