package streamcmd

import (
	"cmp"
	"fmt"
	"io"
	"slices"
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

type listFlags struct {
	store    connect.StoreFlags
	out      outputFlag
	filter   stream.Filter
	states   []string
	watch    bool
	interval time.Duration
}

func newListCommand() *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List jobs, the newest first", Args: cobra.NoArgs,
		Example: `  levada stream list --state running,failed
  levada stream list --watch`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) { return f.run(cmd) },
	}
	flags := cmd.Flags()
	f.store.Register(flags)
	f.out.register(flags)
	flags.StringSliceVar(&f.states, "state", nil, "only jobs in these states: ready, running, paused, completed, failed, cancelled")
	flags.StringSliceVar(&f.filter.Streams, "stream", nil, "only jobs of these streams")
	flags.IntVar(&f.filter.Limit, "limit", 100, "how many at most")
	flags.BoolVarP(&f.watch, "watch", "w", false, "show them again and again, until Ctrl-C")
	flags.DurationVar(&f.interval, "interval", time.Second, "time between two looks, with --watch")
	commandline.AtLeast(flags, "interval", 100*time.Millisecond)
	return cmd
}

func (f *listFlags) run(cmd *cobra.Command) (err error) {
	for _, s := range f.states {
		known := []stream.State{stream.Ready, stream.Running, stream.Paused, stream.Completed, stream.Failed, stream.Cancelled}
		if !slices.Contains(known, stream.State(s)) {
			return commandline.Usagef("--state: expected some of %s, not %q", joinStates(known), s)
		}
		f.filter.States = append(f.filter.States, stream.State(s))
	}
	d, err := f.store.Open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer d.Closing(&err)
	if f.watch {
		return f.watchJobs(cmd, d)
	}
	jobs, err := d.List(cmd.Context(), f.filter)
	if err != nil {
		return err
	}
	if f.out.json() {
		return writeLines(cmd.OutOrStdout(), jobs)
	}
	_, err = io.WriteString(cmd.OutOrStdout(), jobTable(jobs, time.Now(), averageRate))
	return err
}

func joinStates(states []stream.State) string {
	texts := make([]string, len(states))
	for i, s := range states {
		texts[i] = string(s)
	}
	return strings.Join(texts, ", ")
}

// averageRate is the rate since the job was first claimed.
func averageRate(s *stream.Status, now time.Time) float64 {
	end := now
	if !s.FinishedAt.IsZero() {
		end = s.FinishedAt
	}
	if s.StartedAt.IsZero() || !end.After(s.StartedAt) {
		return 0
	}
	return float64(s.Progress.Records) / end.Sub(s.StartedAt).Seconds()
}

func jobTable(jobs []stream.Status, now time.Time, rate func(*stream.Status, time.Time) float64) string {
	if len(jobs) == 0 {
		return "no jobs\n"
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTREAM\tSTATE\tRECORDS\t%\tRECORDS/S\tBAD\tATTEMPTS\tOWNER\tAGE\tREASON\tERROR")
	for i := range jobs {
		s := &jobs[i]
		owner := "-"
		if s.State == stream.Running {
			owner = commandline.Printable(s.Owner.String())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", commandline.Printable(s.ID), commandline.Printable(s.Stream), s.State, humanize.Comma(int64(s.Progress.Records)), jobtext.Percent(s.Progress),
			humanize.Comma(int64(rate(s, now))), s.Progress.Bad, s.Attempts, owner, age(now.Sub(s.CreatedAt)), cmp.Or(string(s.Reason), "-"), jobtext.Shorten(s.LastError, 60))
	}
	_ = w.Flush()
	return b.String()
}

func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// watchJobs shows the jobs every interval until the command is ended. On a terminal each table takes the place of the one before.
func (f *listFlags) watchJobs(cmd *cobra.Command, d *connect.Database) error {
	s := &commandline.Screen{Out: cmd.OutOrStdout()}
	live := commandline.IsTerminal(cmd.OutOrStdout())
	rates := currentRates{}
	tick := time.NewTicker(max(f.interval, 100*time.Millisecond))
	defer tick.Stop()
	for {
		jobs, err := d.List(cmd.Context(), f.filter)
		if cmd.Context().Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		now := time.Now()
		switch {
		case f.out.json():
			if err := writeLines(cmd.OutOrStdout(), jobs); err != nil {
				return err
			}
		case live:
			s.Draw(jobTable(jobs, now, rates.of))
		default:
			fmt.Fprintf(s.Out, "%s\n%s", now.Format(time.TimeOnly), jobTable(jobs, now, rates.of))
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}

// currentRates measures jobs, by id, between two looks.
type currentRates map[string]*jobtext.Meter

func (r currentRates) of(job *stream.Status, now time.Time) float64 {
	if job.State != stream.Running {
		return averageRate(job, now)
	}
	if r[job.ID] == nil {
		r[job.ID] = &jobtext.Meter{}
	}
	return r[job.ID].Update(now, job.Progress.Records)
}
