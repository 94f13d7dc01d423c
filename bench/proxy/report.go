package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// noTLS is why a path is left out of a case with TLS.
const noTLS = "no TLS"

// record is a run, as it is kept in a file.
type record struct {
	// Pace is microseconds of CPU for a write and a read, round by round.
	Pace  []float64
	Cases map[string]figures
}

// caseTable prints what was measured of one case.
func caseTable(w io.Writer, c benchCase, paths []path, f figures) {
	fmt.Fprintf(w, "\n## %s\n\n", c.name)
	switch c.load.Kind {
	case "idle":
		idleTable(w, c, paths, f)
	case "limit":
		limitTable(w, paths, f)
	default:
		loadTable(w, paths, f)
	}
}

// summary prints a table of all first figures, and a line for each goal.
func summary(w io.Writer, cases []benchCase, paths []path, now, earlier record) {
	fmt.Fprint(w, "\n## First figures\n\n")
	header := []string{"case", "of"}
	for _, p := range paths {
		header = append(header, p.name)
	}
	rows := [][]string{header}
	for _, c := range cases {
		row := []string{c.name, map[string]string{"cpu": "CPU us", "kbPerStream": "KB a stream", "live": "live streams"}[c.goal.Measure]}
		for _, p := range paths {
			row = append(row, shown(c.first(now.Cases[c.name][p.name])))
		}
		rows = append(rows, row)
	}
	table(w, rows)
	loads, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(loads), " ")
	fmt.Fprintf(w, "\nLoad average at the end %s. CPU is sound on a busy machine, but for its pace; rates and latencies are not.\n", load)
	if pace, there := median(now.Pace); there {
		fmt.Fprintf(w, "Pace, a write and a read of 100 bytes on a socket pair: %.2f us of CPU (%.2f - %.2f).\n", pace, slices.Min(now.Pace), slices.Max(now.Pace))
	}
	fmt.Fprint(w, "\n## Goals\n\n")
	for _, c := range cases {
		for _, verdict := range c.verdicts(now.Cases[c.name], earlier.Cases[c.name]) {
			fmt.Fprintf(w, "- %s: %s\n", c.name, verdict)
		}
	}
}

func loadTable(w io.Writer, paths []path, f figures) {
	direct := 0.0
	if d := f["direct"]; d != nil {
		direct, _ = median(d.Rate)
	}
	rows := [][]string{{"path", "CPU us/request (least - most)", "requests/s", "of direct", "p50 us", "p99 us", "PSS MB", "failed"}}
	for _, p := range paths {
		x := f[p.name]
		if x.Missing != "" || x.Broken != "" {
			rows = append(rows, absent(p, x, len(rows[0])))
			continue
		}
		cpu := shown(median(x.CPU))
		if len(x.CPU) > 0 {
			cpu += fmt.Sprintf(" (%s - %s)", number(slices.Min(x.CPU)), number(slices.Max(x.CPU)))
		}
		rate, _ := median(x.Rate)
		share := "-"
		if direct > 0 {
			share = fmt.Sprintf("%.2f", rate/direct)
		}
		rows = append(rows, []string{p.name, cpu, fmt.Sprintf("%.0f", rate), share, shown(median(x.P50)), shown(median(x.P99)), shown(median(x.PSS)), failures(x)})
	}
	table(w, rows)
}

func idleTable(w io.Writer, c benchCase, paths []path, f figures) {
	header := []string{"path"}
	for _, n := range c.load.Stages {
		header = append(header, fmt.Sprintf("MB grown at %d", n))
	}
	rows := [][]string{append(header, "KB a stream", "descriptors")}
	for _, p := range paths {
		x := f[p.name]
		if x.Missing != "" || x.Broken != "" {
			rows = append(rows, absent(p, x, len(rows[0])))
			continue
		}
		row := []string{p.name}
		if p.command == nil {
			row[0] = "(the backend itself)"
		}
		for _, n := range c.load.Stages {
			row = append(row, shown(median(x.stage(n, func(s idleStage) float64 { return s.GrownKB / 1024 }))))
		}
		last := c.load.Stages[len(c.load.Stages)-1]
		descriptors, _ := median(x.stage(last, func(s idleStage) float64 { return float64(s.Descriptors) }))
		rows = append(rows, append(row, shown(x.kbPerStream(last)), fmt.Sprintf("%.0f", descriptors)))
	}
	table(w, rows)
}

func limitTable(w io.Writer, paths []path, f figures) {
	rows := [][]string{{"path", "live", "wanted", "backend connections", "a new unary call"}}
	for _, p := range paths {
		x := f[p.name]
		if x.Missing != "" || x.Broken != "" {
			rows = append(rows, absent(p, x, len(rows[0])))
		}
		for _, r := range x.Limit {
			rows = append(rows, []string{p.name, fmt.Sprint(r.Live), fmt.Sprint(r.Wanted), fmt.Sprint(r.BackendConnections), r.Call})
		}
	}
	table(w, rows)
}

func absent(p path, f *figure, columns int) []string {
	reason := "not there"
	switch {
	case f.Broken != "":
		reason = "broken: " + f.Broken
	case f.Missing == noTLS:
		reason = noTLS
	}
	row := []string{p.name, reason}
	for len(row) < columns {
		row = append(row, "")
	}
	return row
}

func failures(f *figure) string {
	if f.Failed == 0 {
		return "0"
	}
	return fmt.Sprintf("%d: %s", f.Failed, f.Error)
}

// stage are the looks at so many streams.
func (f *figure) stage(streams int, of func(idleStage) float64) (values []float64) {
	for _, s := range f.Idle {
		if s.Streams == streams {
			values = append(values, of(s))
		}
	}
	return values
}

func (f *figure) kbPerStream(streams int) (float64, bool) {
	return median(f.stage(streams, func(s idleStage) float64 { return s.GrownKB / float64(s.Streams) }))
}

// first is the first figure of a path: what the case's goal is about.
func (c benchCase) first(f *figure) (float64, bool) {
	if f == nil || f.Broken != "" {
		return 0, false
	}
	switch c.goal.Measure {
	case "kbPerStream":
		return f.kbPerStream(c.load.Stages[len(c.load.Stages)-1])
	case "live":
		var live []float64
		for _, r := range f.Limit {
			live = append(live, float64(r.Live))
		}
		return median(live)
	default:
		return median(f.CPU)
	}
}

// verdicts are a line for each goal.
func (c benchCase) verdicts(now, earlier figures) (lines []string) {
	if f := now[ourName]; f != nil && f.Broken != "" {
		return []string{"MISSED: ours is broken: " + f.Broken}
	}
	ours, there := c.first(now[ourName])
	if !there {
		return []string{"ours is not there"}
	}
	say := func(met bool, format string, args ...any) {
		verdict := "met"
		if !met {
			verdict = "MISSED"
		}
		lines = append(lines, verdict+": "+fmt.Sprintf(format, args...))
	}
	g := c.goal
	if g.AtMost > 0 {
		say(ours <= g.AtMost, "%s, at most %s", number(ours), number(g.AtMost))
	}
	if g.AtLeast > 0 {
		say(ours >= g.AtLeast, "%s, at least %s", number(ours), number(g.AtLeast))
	}
	if g.Answers {
		say(!slices.ContainsFunc(now[ourName].Limit, func(r limitResult) bool { return !r.Answered }), "a new call is answered")
	}
	if n := now[ourName].Failed; n > 0 {
		say(false, "%d requests failed: %s", n, now[ourName].Error)
	}
	if g.Against == "" {
		return lines
	}
	other, there := c.first(now[g.Against])
	if !there || other <= 0 {
		return append(lines, fmt.Sprintf("not judged: %s is not there to compare with", g.Against))
	}
	times := strconv.FormatFloat(g.Times, 'g', -1, 64)
	say(ours < other*g.Times, "%s, less than %s (%s times %s of %s)", number(ours), number(other*g.Times), times, number(other), g.Against)
	if earlier == nil {
		return lines
	}
	oursThen, a := c.first(earlier[ourName])
	otherThen, b := c.first(earlier[g.Against])
	if !a || !b || oursThen <= 0 || otherThen <= 0 {
		return append(lines, "not judged: the earlier run has no figures to compare with")
	}
	then, ratio := oursThen/otherThen, ours/other
	say(ratio <= then*(1+g.Worse), "%.2f times %s; it was %.2f, and may be %.0f %% more", ratio, g.Against, then, g.Worse*100)
	return lines
}

// median of the values; false if there are none.
func median(values []float64) (float64, bool) {
	if len(values) == 0 {
		return 0, false
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2, true
	}
	return sorted[middle], true
}

func shown(value float64, there bool) string {
	if !there {
		return "-"
	}
	return number(value)
}

// number has as many digits as mean something.
func number(v float64) string {
	switch {
	case v == float64(int64(v)), v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v < 1 && v > -1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.1f", v)
	}
}

// table prints rows in markdown, the first being the header.
func table(w io.Writer, rows [][]string) {
	for i, row := range rows {
		for j, cell := range row {
			row[j] = strings.NewReplacer("|", "/", "\n", " ").Replace(cell)
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(row)))
		}
	}
}
