package pipelinecmd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/standalone"
)

// view shows a run: a table that is drawn over on a terminal, and otherwise a line or a record a vertex, every interval.
type view struct {
	kind     string // table, text, json or none
	screen   *commandline.Screen
	log      *slog.Logger // for json
	colours  bool
	interval time.Duration
	before   map[string]vertex.Stats
	at       time.Time

	// mu is held while something is printed. Nothing follows the last lines, also if a run was cut short while its view still asked for counters.
	mu    sync.Mutex
	ended bool
}

// newView returns a view of a kind, or of the kind that fits if it is auto. jsonLog is set if everything is to be JSON.
func newView(kind string, screen *commandline.Screen, quiet bool, interval time.Duration, jsonLog *slog.Logger, sharesTerminal bool) (*view, error) {
	if interval <= 0 {
		return nil, fmt.Errorf("--interval %v: give a time above 0, such as 2s", interval)
	}
	switch {
	case jsonLog != nil:
		kind = "json"
	case kind == "auto" && screen.Terminal() && !sharesTerminal && os.Getenv("TERM") != "dumb":
		kind = "table"
	case kind == "auto":
		kind = "text"
	}
	if quiet {
		kind = "none"
	}
	return &view{
		kind: kind, screen: screen, log: jsonLog, colours: screen.Terminal() && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		interval: max(interval, 100*time.Millisecond), before: map[string]vertex.Stats{}, at: time.Now(),
	}, nil
}

// start says what runs, and where.
func (v *view) start(r *standalone.Running, dataDir string, took time.Duration) {
	switch v.kind {
	case "none":
		return
	case "json":
		v.log.Info("run started", "event.action", "run-started", "event.duration", took.Nanoseconds(), "address", r.Address, "data", dataDir, "durability", r.Durability)
		return
	}
	var b bytes.Buffer
	for _, p := range r.Pipelines {
		fmt.Fprintf(&b, "%s %s/%s\n", p.Kind, p.Namespace, p.Name)
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, s := range p.Counts() {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Name, s.Kind, s.Runs)
		}
		_ = w.Flush()
	}
	fmt.Fprintf(&b, "metrics  http://%s/metrics  (also /livez /readyz)\ndata     %s: %s\nstarted in %v; Ctrl-C drains and stops\n\n", r.Address, dataDir, r.Durability, took.Round(time.Millisecond))
	_, _ = v.screen.Write(b.Bytes())
}

// follow shows rates until ctx ends.
func (v *view) follow(ctx context.Context, r *standalone.Running) {
	if v.kind == "none" {
		return
	}
	tick := time.NewTicker(v.interval)
	defer tick.Stop()
	resized := make(chan os.Signal, 1)
	if v.kind == "table" {
		signal.Notify(resized, syscall.SIGWINCH)
		defer signal.Stop(resized)
		v.show(r)
	}
	for {
		select {
		case <-ctx.Done():
			v.show(r)
			v.screen.Keep()
			return
		case <-resized:
			v.show(r)
		case <-tick.C:
			v.show(r)
		}
	}
}

// line is one vertex within an interval.
type line struct {
	Pipeline, Vertex        string
	Read, Written, Pending  int64
	ReadRate, WrittenRate   float64
	Errors, Dropped         int64
	DeadLetters, Duplicates int64
	LatencyMs               float64
	several                 bool // pipelines run, so that the vertex alone does not tell
}

func (l *line) name() string {
	if l.several {
		return l.Pipeline + "/" + l.Vertex
	}
	return l.Vertex
}

func (v *view) lines(r *standalone.Running) (lines []line) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	seconds := max(time.Since(v.at).Seconds(), 0.001)
	v.at = time.Now()
	for _, p := range r.Pipelines {
		for _, s := range p.Stats(ctx) {
			key := p.Namespace + "/" + p.Name + "/" + s.Name
			b := v.before[key]
			l := line{
				Pipeline: p.Name, Vertex: s.Name, Read: s.In, Written: s.Out, Pending: s.Pending, Errors: s.Errors, Dropped: s.Dropped, DeadLetters: s.DeadLetters,
				Duplicates: s.Duplicates, ReadRate: float64(s.In-b.In) / seconds, WrittenRate: float64(s.Out-b.Out) / seconds, several: len(r.Pipelines) > 1,
			}
			if n := s.Delivered - b.Delivered; n > 0 {
				l.LatencyMs = float64(s.LatencyNanos-b.LatencyNanos) / float64(n) / 1e6
			}
			v.before[key] = s
			lines = append(lines, l)
		}
	}
	return lines
}

func (v *view) show(r *standalone.Running) {
	lines := v.lines(r)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return
	}
	switch v.kind {
	case "json":
		for i := range lines {
			l := &lines[i]
			v.log.Info("progress", "event.action", "progress", "pipeline", l.Pipeline, "vertex", l.Vertex, "read", l.Read, "readPerSecond", l.ReadRate,
				"written", l.Written, "writtenPerSecond", l.WrittenRate, "pending", l.Pending, "latencyMs", l.LatencyMs, "errors", l.Errors,
				"dropped", l.Dropped, "duplicates", l.Duplicates, "deadLetters", l.DeadLetters)
		}
	case "text":
		var b bytes.Buffer
		for i := range lines {
			l := &lines[i]
			fmt.Fprintf(&b, "%s/%s read %d (%.0f/s) written %d pending %s errors %d dropped %d duplicates %d dead letters %d\n",
				l.Pipeline, l.Vertex, l.Read, l.ReadRate, l.Written, count(l.Pending), l.Errors, l.Dropped, l.Duplicates, l.DeadLetters)
		}
		_, _ = v.screen.Write(b.Bytes())
	case "table":
		width, height := v.screen.Size()
		rows := table(lines, width-1, max(3, height-2))
		if v.colours {
			rows[0] = "\x1b[1m" + rows[0] + "\x1b[0m"
		}
		block := strings.Join(rows, "\n") + "\n"
		if !v.screen.Terminal() {
			_, _ = v.screen.Write([]byte(block))
			return
		}
		v.screen.Draw(block)
	}
}

// column is one of the table. Those that do not fit are left out by their rank, the highest first; 0 is never left out.
type column struct {
	head string
	rank int
	// always: also when all its values are 0.
	always bool
	value  func(l *line) int64
	text   func(l *line) string // instead of value
}

var columns = []column{
	{head: "read", always: true, value: func(l *line) int64 { return l.Read }},
	{head: "read/s", always: true, rank: 3, value: func(l *line) int64 { return int64(l.ReadRate) }},
	{head: "written", always: true, value: func(l *line) int64 { return l.Written }},
	{head: "pending", always: true, value: func(l *line) int64 { return l.Pending }},
	{head: "latency", always: true, rank: 4, text: func(l *line) string {
		if l.LatencyMs <= 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f ms", l.LatencyMs)
	}},
	{head: "errors", rank: 2, value: func(l *line) int64 { return l.Errors }},
	{head: "dropped", rank: 1, value: func(l *line) int64 { return l.Dropped }},
	{head: "dupl.", rank: 1, value: func(l *line) int64 { return l.Duplicates }},
	{head: "dead", value: func(l *line) int64 { return l.DeadLetters }},
}

// table lays out the vertices within a width and a height. Columns of faults come once there are any.
func table(lines []line, width, height int) []string {
	var shown []column
	for _, c := range columns {
		keep := c.always
		for i := range lines {
			keep = keep || c.value != nil && c.value(&lines[i]) > 0
		}
		if keep {
			shown = append(shown, c)
		}
	}
	more := 0
	if len(lines)+1 > height {
		more = len(lines) + 2 - height
		lines = lines[:len(lines)-more]
	}
	names := utf8.RuneCountInString("vertex")
	for i := range lines {
		names = max(names, utf8.RuneCountInString(lines[i].name()))
	}
	const leastName = 12
	number, rounded := humanize.Comma, false
	cells := func() ([][]string, int) {
		var all [][]string
		sum := 0
		for _, c := range shown {
			column, wide := []string{c.head}, len(c.head)
			for i := range lines {
				cell := ""
				switch {
				case c.text != nil:
					cell = c.text(&lines[i])
				case c.value(&lines[i]) < 0:
					cell = "?"
				default:
					cell = number(c.value(&lines[i]))
				}
				column, wide = append(column, cell), max(wide, len(cell))
			}
			for i := range column {
				column[i] = strings.Repeat(" ", 2+wide-len(column[i])) + column[i]
			}
			all, sum = append(all, column), sum+2+wide
		}
		return all, sum
	}
	all, sum := cells()
	for names+sum > width {
		worst := -1
		for i, c := range shown {
			if c.rank > 0 && (worst < 0 || c.rank > shown[worst].rank) {
				worst = i
			}
		}
		switch {
		case !rounded:
			number, rounded = short, true
		case worst >= 0:
			shown = append(shown[:worst:worst], shown[worst+1:]...)
		default:
			names = max(leastName, width-sum)
			if names+sum > width && len(shown) > 1 {
				shown = shown[:len(shown)-1] // a terminal of a few characters
			} else {
				width = names + sum
			}
		}
		all, sum = cells()
	}
	rows := make([]string, 0, len(lines)+2)
	for i := range len(lines) + 1 {
		name := "vertex"
		if i > 0 {
			name = lines[i-1].name()
		}
		if n := utf8.RuneCountInString(name); n > names {
			name = string([]rune(name)[:names-1]) + "…"
		} else {
			name += strings.Repeat(" ", names-n)
		}
		for _, c := range all {
			name += c[i]
		}
		rows = append(rows, name)
	}
	if more > 0 {
		rows = append(rows, fmt.Sprintf("… and %d more", more))
	}
	return rows
}

// short is a number in at most six characters: 9999, 10.5k, 12.3M.
func short(n int64) string {
	if n < 10_000 {
		return fmt.Sprint(n)
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"k", "M", "G", "T", "P"} {
		if f /= 1000; f < 999.95 {
			break
		}
	}
	return fmt.Sprintf("%.1f%s", f, unit)
}

// end says what is where. Without progress that is said only if not all is well.
func (v *view) end(o *runEnd, code int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = true
	if v.kind == "none" && code == 0 {
		return
	}
	if v.log != nil {
		o.log(v.log, code)
		return
	}
	for _, line := range o.lines() {
		fmt.Fprintln(v.screen, line)
	}
}

func count(n int64) string {
	if n < 0 {
		return "?"
	}
	return humanize.Comma(n)
}
