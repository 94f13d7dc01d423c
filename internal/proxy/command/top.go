package command

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/admin"
)

func newTop(name string) *cobra.Command {
	var (
		at       adminFlag
		interval time.Duration
		count    int
		rows     int
	)
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show the methods and endpoints of a proxy with their rates, open calls, latencies and statuses",
		Long: `Show the methods and endpoints of a proxy with their rates, open calls, latencies and statuses, again and again until it is interrupted.

The first numbers are those since the proxy has begun, the following ones those of the interval. Latencies are of whole calls, estimated from a histogram.`,
		Example: examples(name, "top", "top --count 1 --admin 10.0.0.7:9901"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := at.client()
			if err != nil {
				return err
			}
			return top(cmd.Context(), client, cmd.OutOrStdout(), interval, count, rows)
		},
	}
	f := cmd.Flags()
	at.register(f)
	f.DurationVar(&interval, "interval", 2*time.Second, "time between two looks")
	commandline.AtLeast(f, "interval", 100*time.Millisecond)
	f.IntVar(&count, "count", 0, "looks before the command ends; 0 goes on")
	f.IntVar(&rows, "rows", 20, "methods that are shown, those with the most calls first; 0 shows all")
	return cmd
}

// topScreen writes one overview after the other, each over the one before on a terminal.
type topScreen struct {
	out      io.Writer
	terminal bool
	rows     int             // methods that are shown; 0 shows all
	before   *admin.Overview // nil before the first one, and after a restart of the proxy
	drawn    int             // lines on the terminal, which the next overview is drawn over
}

func top(ctx context.Context, client *admin.Client, out io.Writer, interval time.Duration, count, rows int) error {
	s := topScreen{out: out, terminal: commandline.IsTerminal(out), rows: rows}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for n := 1; ; n++ {
		now, err := client.Overview(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.show(now); err != nil || n == count {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (s *topScreen) show(now *admin.Overview) error {
	if s.before != nil && !s.before.StartedAt.Equal(now.StartedAt) {
		s.before = nil // the proxy was restarted
	}
	text := topText(s.before, now, s.rows)
	if s.terminal {
		text = fit(s.out, text, func(rows int) string { return topText(s.before, now, rows) })
		if s.drawn > 0 {
			text = fmt.Sprintf("\x1b[%dA\x1b[J%s", s.drawn, text) // up, and clear what is below
		}
		s.drawn = strings.Count(text, "\n")
	} else {
		text += "\n"
	}
	s.before = now
	_, err := io.WriteString(s.out, text)
	return err
}

// fit leaves out what the terminal has no room for: lines that scroll away, and those that take two rows, could not be drawn over. If it is too low, fewer methods
// are shown, so that the endpoints are.
func fit(out io.Writer, text string, withRows func(rows int) string) string {
	f, ok := out.(*os.File)
	if !ok {
		return text
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 10 || height < 3 {
		return text
	}
	return fitTo(text, withRows, width, height)
}

// fewest methods that are shown although endpoints have no room.
const fewest = 3

func fitTo(text string, withRows func(rows int) string, width, height int) string {
	if strings.Count(text, "\n") >= height {
		least := withRows(fewest)
		text = withRows(fewest + max(0, height-1-strings.Count(least, "\n")))
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) >= height {
		lines = append(lines[:height-2], "...")
	}
	for i, line := range lines {
		if runes := []rune(line); len(runes) >= width {
			lines[i] = string(runes[:width-1])
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// topText is an overview. Without one before it shows what was since the proxy has started.
func topText(before, now *admin.Overview, rows int) string {
	passed, since := now.Now.Sub(now.StartedAt), "since its start"
	earlier := map[string]proxy.MethodView{}
	if before != nil {
		passed = now.Now.Sub(before.Now)
		since = "of the last " + passed.Round(100*time.Millisecond).String()
		for _, m := range before.Methods {
			earlier[m.Path] = m
		}
	}
	state := "ready"
	switch {
	case now.Draining:
		state = "draining"
	case !now.Ready:
		state = "not listening"
	}
	methods := make([]methodRow, 0, len(now.Methods))
	for _, m := range now.Methods {
		methods = append(methods, newMethodRow(earlier[m.Path], m, passed, now.BucketsSeconds))
	}
	slices.SortStableFunc(methods, func(a, b methodRow) int { return cmp.Or(cmp.Compare(b.rate, a.rate), cmp.Compare(b.open, a.open)) })
	var b strings.Builder
	fmt.Fprintf(&b, "proxy %s, %s, up %v, %s; rates and latencies %s\n\n", now.Version, state, now.Now.Sub(now.StartedAt).Round(time.Second),
		plural(int(now.Connections), "connection"), since)
	writeMethods(&b, methods, rows)
	b.WriteByte('\n')
	writeEndpoints(&b, now.Backends)
	return b.String()
}

// writeMethods writes the first methods, and how many there are besides.
func writeMethods(b *strings.Builder, methods []methodRow, rows int) {
	left := 0
	if rows > 0 && len(methods) > rows {
		left = len(methods) - rows
		methods = methods[:rows]
	}
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "METHOD\tKIND\tCALLS/S\tOPEN\tMEAN\tP50\tP99\tSTATUSES")
	for _, m := range methods {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%.1f\t%d\t%s\t%s\t%s\t%s\n", printable(m.path), m.kind, m.rate, m.open, m.mean, m.p50, m.p99, m.statuses)
	}
	_ = w.Flush()
	if left > 0 {
		fmt.Fprintf(b, "and %s\n", plural(left, "method"))
	}
}

func writeEndpoints(b *strings.Builder, backends []proxy.BackendView) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "BACKEND\tENDPOINT\tSTATE\tSTREAMS\tUNARY\tCONNECTIONS\tLATENCY\tFAILURES\tLAST ERROR")
	for _, x := range backends {
		for _, e := range x.Endpoints {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%d of %d\t%s\n", x.Name, e.Address, e.State, e.Streams, e.Unary, len(e.Connections), shortSeconds(e.LatencySeconds),
				e.Failures, e.Results, printable(e.LastError))
		}
		if len(x.Endpoints) == 0 {
			_, _ = fmt.Fprintf(w, "%s\tnone\t\t\t\t\t\t\t%s\n", x.Name, printable(x.Discovery.LastError))
		}
	}
	_ = w.Flush()
}

type methodRow struct {
	path, kind     string
	rate           float64 // calls that ended, a second
	open           int64
	mean, p50, p99 string
	statuses       string
}

// newMethodRow has the difference between two overviews. Counters only rise, so that none is negative.
func newMethodRow(was, is proxy.MethodView, passed time.Duration, bounds []float64) methodRow {
	counts, ended := make([]int64, len(is.Took)), int64(0)
	for i := range is.Took {
		counts[i] = is.Took[i]
		if i < len(was.Took) {
			counts[i] -= was.Took[i]
		}
		ended += counts[i]
	}
	row := methodRow{path: is.Path, kind: is.Kind, open: is.Open, mean: "-", p50: "-", p99: "-", statuses: newStatuses(was.Statuses, is.Statuses)}
	if passed > 0 {
		row.rate = float64(ended) / passed.Seconds()
	}
	if ended > 0 {
		row.mean = shortSeconds((is.Seconds - was.Seconds) / float64(ended))
		row.p50, row.p99 = shortSeconds(quantile(counts, bounds, ended, 0.5)), shortSeconds(quantile(counts, bounds, ended, 0.99))
	}
	return row
}

// newStatuses lists the statuses since an overview with how often each occurred, the most frequent first.
func newStatuses(was, is map[string]int64) string {
	type status struct {
		name string
		n    int64
	}
	var all []status
	for name, n := range is {
		if n -= was[name]; n > 0 {
			all = append(all, status{name, n})
		}
	}
	slices.SortFunc(all, func(a, b status) int { return cmp.Or(cmp.Compare(b.n, a.n), strings.Compare(a.name, b.name)) })
	var texts []string
	for _, s := range all {
		texts = append(texts, fmt.Sprintf("%s %d", s.name, s.n))
	}
	return strings.Join(texts, ", ")
}

// quantile estimates as Prometheus does: evenly within a bucket, and what is above all bounds is the highest bound.
func quantile(counts []int64, bounds []float64, total int64, q float64) float64 {
	rank, below := q*float64(total), int64(0)
	for i, n := range counts {
		if i == len(bounds) {
			break
		}
		if float64(below+n) >= rank && n > 0 {
			lower := 0.0
			if i > 0 {
				lower = bounds[i-1]
			}
			return lower + (bounds[i]-lower)*(rank-float64(below))/float64(n)
		}
		below += n
	}
	return bounds[len(bounds)-1]
}

// shortSeconds is a duration with three digits.
func shortSeconds(s float64) string {
	if s <= 0 {
		return "-"
	}
	d := time.Duration(s * float64(time.Second))
	step := time.Duration(1)
	for d/step >= 1000 {
		step *= 10
	}
	return d.Round(step).String()
}
