package streamcmd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
)

// quarantineFlags are those of all commands about quarantine.
type quarantineFlags struct {
	store    connect.StoreFlags
	notifier connect.NotifierFlags
	out      outputFlag
}

func newQuarantineCommand() *cobra.Command {
	var f quarantineFlags
	cmd := &cobra.Command{
		Use: "quarantine", Short: "Look at records that could not be processed, and have them processed again",
		Long: `A record that panics its handler, kills its process again and again, is refused, or could not be encoded by its producer is quarantined with
diagnostics, in the transaction that moves the offset past it.`,
	}
	f.store.Register(cmd.PersistentFlags())
	f.out.register(cmd.PersistentFlags())
	cmd.AddCommand(f.newList(), f.newShow(),
		f.newMark("replay JOB SEQ...", "Hand records to the handler again, once a worker has the job", "are marked to be handed over again", stream.Replay),
		f.newMark("drop JOB SEQ...", "Give records up for good; the evidence stays", "are dropped", stream.Dropped))
	return cmd
}

func (f *quarantineFlags) newList() *cobra.Command {
	var states []string
	var limit int
	cmd := &cobra.Command{
		Use: "list JOB", Short: "List the quarantined records of a job", Args: jobArguments(1), Annotations: map[string]string{"one": "job"},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			wanted, err := quarantineStates(states)
			if err != nil {
				return err
			}
			return f.store.WithJob(cmd.Context(), args[0], func(d *connect.Database, job stream.Status) (err error) {
				rows, err := d.Offsets().Quarantined(cmd.Context(), job.ID, limit, wanted...)
				if err != nil {
					return err
				}
				if f.out.json() {
					return writeLines(cmd.OutOrStdout(), rows)
				}
				return listQuarantine(cmd.OutOrStdout(), rows)
			})
		},
	}
	cmd.Flags().StringSliceVar(&states, "state", nil, "only records in these states: waiting, replay, replayed, dropped")
	cmd.Flags().IntVar(&limit, "limit", 1000, "how many at most")
	return cmd
}

func (f *quarantineFlags) newShow() *cobra.Command {
	return &cobra.Command{
		Use: "show JOB SEQ", Short: "Show one record with its payload and the evidence",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return commandline.Usagef("quarantine show needs a job and the number of one record, for instance: levada stream quarantine show 5f2c81aa 812")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			seqs, err := parseSeqs(args[1:])
			if err != nil {
				return err
			}
			return f.store.WithJob(cmd.Context(), args[0], func(d *connect.Database, job stream.Status) (err error) {
				rows, err := d.Offsets().Quarantined(cmd.Context(), job.ID, 1<<30)
				if err != nil {
					return err
				}
				i := slices.IndexFunc(rows, func(q stream.Quarantined) bool { return q.Seq == seqs[0] })
				switch {
				case i < 0:
					return fmt.Errorf("record %d of job %s is not in quarantine; `levada stream quarantine list %s` shows what is", seqs[0], job.ID, jobtext.ShortID(job.ID))
				case f.out.json():
					return commandline.WriteJSON(cmd.OutOrStdout(), true, &rows[i])
				}
				return showQuarantined(cmd.OutOrStdout(), &rows[i])
			})
		},
	}
}

// marking is one command that changes the state of quarantined records.
type marking struct {
	*quarantineFlags
	to   stream.QuarantineState
	done string // what has become of the records, in words
	all  bool   // not those that the command names, but all that wait
}

func (f *quarantineFlags) newMark(use, short, done string, to stream.QuarantineState) *cobra.Command {
	m := &marking{quarantineFlags: f, to: to, done: done}
	cmd := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 0 || m.all == (len(args) > 1) {
				return commandline.Usagef("%s needs a job, and the numbers of records or --all", cmd.Name())
			}
			seqs, err := parseSeqs(args[1:])
			if err != nil {
				return err
			}
			return f.store.WithJob(cmd.Context(), args[0], func(d *connect.Database, job stream.Status) (err error) {
				return m.mark(cmd, d, job, seqs)
			})
		},
	}
	cmd.Flags().BoolVar(&m.all, "all", false, "all that wait")
	if to == stream.Replay {
		f.notifier.Register(cmd.Flags())
	}
	return cmd
}

func (m *marking) mark(cmd *cobra.Command, d *connect.Database, job stream.Status, seqs []uint64) error {
	if err := m.notifier.Check(d); err != nil {
		return err
	}
	n, err := d.Offsets().MarkQuarantined(cmd.Context(), job.ID, m.to, seqs...)
	if err != nil {
		return err
	}
	if n == 0 || !m.all && n < len(seqs) {
		return fmt.Errorf("of the records named, %d wait in the quarantine of job %s, and %s; `levada stream quarantine list %s` shows which do", n, job.ID, m.done, jobtext.ShortID(job.ID))
	}
	if m.to == stream.Replay {
		if job, err = wakeForReplay(cmd, d, job); err != nil {
			return err
		}
		if err := m.notifier.Send(cmd.Context(), d, cmd.ErrOrStderr(), job.Job); err != nil {
			return err
		}
	}
	if m.out.json() {
		return commandline.WriteJSON(cmd.OutOrStdout(), false, map[string]any{"job": job.ID, "records": n, "state": m.to, "jobState": job.State})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d records of job %s %s\n", n, job.ID, m.done)
	return err
}

// wakeForReplay makes a job that has ended ready again. A worker replays when it claims a job, so one that is running has to be claimed again,
// which a person brings about: here it is only told.
func wakeForReplay(cmd *cobra.Command, d *connect.Database, job stream.Status) (stream.Status, error) {
	if !job.State.Final() {
		if job.State == stream.Running {
			fmt.Fprintf(cmd.ErrOrStderr(), "the job is running, and its records are replayed when it is claimed next: `levada stream pause %s` and `resume` bring that about at once\n", jobtext.ShortID(job.ID))
		}
		return job, nil
	}
	retried, err := d.Retry(cmd.Context(), job.ID)
	if errors.Is(err, stream.ErrState) {
		return d.Get(cmd.Context(), job.ID) // another caller was faster
	}
	return retried, err
}

func quarantineStates(texts []string) ([]stream.QuarantineState, error) {
	var states []stream.QuarantineState
	for _, text := range texts {
		switch s := stream.QuarantineState(text); s {
		case stream.Waiting, stream.Replay, stream.Replayed, stream.Dropped:
			states = append(states, s)
		default:
			return nil, commandline.Usagef("--state: expected some of waiting, replay, replayed, dropped, not %q", text)
		}
	}
	return states, nil
}

func parseSeqs(args []string) ([]uint64, error) {
	var seqs []uint64
	for _, arg := range args {
		seq, err := strconv.ParseUint(strings.NewReplacer(",", "", "_", "").Replace(arg), 10, 63)
		if err != nil || seq == 0 {
			return nil, commandline.Usagef("%q is not a record number: expected 1 or more, as `levada stream quarantine list` shows them", arg)
		}
		seqs = append(seqs, seq)
	}
	return seqs, nil
}

func listQuarantine(out io.Writer, rows []stream.Quarantined) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "no quarantined records")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SEQ\tSTATE\tCLASS\tATTEMPTS\tSEEN\tKEY\tSIZE\tERROR")
	for i := range rows {
		q := &rows[i]
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", q.Seq, q.State, q.Class, q.Attempts, q.FirstSeen.Local().Format(time.DateTime), jobtext.Shorten(jobtext.Bytes(q.Key), 40),
			humanize.IBytes(uint64(len(q.Payload))), jobtext.Shorten(q.Error, 80))
	}
	return w.Flush()
}

// classText says what a class means.
var classText = map[stream.Class]string{
	stream.ClassRefused: "the handler, or its database, refused it", stream.ClassPanic: "handler panicked", stream.ClassCrash: "processes crashed with it alone in flight",
	stream.ClassProducer: "the producer could not make it",
}

func showQuarantined(out io.Writer, q *stream.Quarantined) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "job:\t%s\nrecord:\t%d\nkey:\t%s\nstate:\t%s\nclass:\t%s: %s\nerror:\t%s\nattempts:\t%d\nfirst seen:\t%s\n", commandline.Printable(q.Job), q.Seq, jobtext.Bytes(q.Key), q.State, q.Class,
		cmp.Or(classText[q.Class], "unknown"), commandline.Printable(q.Error), q.Attempts, q.FirstSeen.Local().Format(time.RFC3339))
	if err := w.Flush(); err != nil {
		return err
	}
	for i, a := range q.History {
		fmt.Fprintf(out, "\nattempt %d of those known, %s, %s: %s\n", i+1, a.Time.Local().Format(time.RFC3339), a.Class, commandline.Printable(a.Error))
		if a.Stack != "" {
			fmt.Fprintf(out, "%s\n", commandline.Indent(strings.TrimSpace(a.Stack)))
		}
	}
	_, err := fmt.Fprintf(out, "\npayload (%d bytes):\n%s\n", len(q.Payload), commandline.Indent(jobtext.Payload(q.Payload)))
	return err
}
