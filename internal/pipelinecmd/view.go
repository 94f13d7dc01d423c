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

// shown is a run, in one process or in several.
type shown struct {
	address, durability string
	pipelines           []shownPipeline
}

// shownPipeline has the counters of the vertices of a pipeline: as they are, and with those that have to be asked for.
type shownPipeline struct {
	kind, namespace, name string
	counts                func() []vertex.Stats
	stats                 func(context.Context) []vertex.Stats
}

// shownOf is a run in one process.
func shownOf(r *standalone.Running) *shown {
	s := &shown{address: r.Address, durability: r.Durability}
	for _, p := range r.Pipelines {
		s.pipelines = append(s.pipelines, shownPipeline{kind: p.Kind, namespace: p.Namespace, name: p.Name, counts: p.Counts, stats: p.Stats})
	}
	return s
}

// start says what runs, and where.
func (v *view) start(r *shown, dataDir string, took time.Duration) {
	switch v.kind {
	case "none":
		return
	case "json":
		v.log.Info("run started", "event.action", "run-started", "event.duration", took.Nanoseconds(), "address", r.address, "data", dataDir, "durability", r.durability)
		return
	}
	var b bytes.Buffer
	for _, p := range r.pipelines {
		fmt.Fprintf(&b, "%s %s/%s\n", p.kind, p.namespace, p.name)
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, s := range p.counts() {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Name, s.Kind, s.Runs)
		}
		_ = w.Flush()
	}
	fmt.Fprintf(&b, "metrics  http://%s/metrics  (also /livez /readyz)\ndata     %s: %s\nstarted in %v; Ctrl-C drains and stops\n\n", r.address, dataDir, r.durability, took.Round(time.Millisecond))
	_, _ = v.screen.Write(b.Bytes())
}

// follow shows rates until ctx ends.
func (v *view) follow(ctx context.Context, r *shown) {
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

func (v *view) lines(r *shown) (lines []line) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	seconds := max(time.Since(v.at).Seconds(), 0.001)
	v.at = time.Now()
	for _, p := range r.pipelines {
		for _, s := range p.stats(ctx) {
			key := p.namespace + "/" + p.name + "/" + s.Name
			b := v.before[key]
			l := line{
				Pipeline: p.name, Vertex: s.Name, Read: s.In, Written: s.Out, Pending: s.Pending, Errors: s.Errors, Dropped: s.Dropped, DeadLetters: s.DeadLetters,
				Duplicates: s.Duplicates, ReadRate: float64(s.In-b.In) / seconds, WrittenRate: float64(s.Out-b.Out) / seconds, several: len(r.pipelines) > 1,
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

func (v *view) show(r *shown) {
	lines := v.lines(r)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return
	}
	switch v.kind {
	case "json":
		v.logLines(lines)
	case "text":
		v.printLines(lines)
	case "table":
		v.drawTable(lines)
	}
}

func (v *view) logLines(lines []line) {
	for i := range lines {
		l := &lines[i]
		v.log.Info("progress", "event.action", "progress", "pipeline", l.Pipeline, "vertex", l.Vertex, "read", l.Read, "readPerSecond", l.ReadRate,
			"written", l.Written, "writtenPerSecond", l.WrittenRate, "pending", l.Pending, "latencyMs", l.LatencyMs, "errors", l.Errors,
			"dropped", l.Dropped, "duplicates", l.Duplicates, "deadLetters", l.DeadLetters)
	}
}

func (v *view) printLines(lines []line) {
	var b bytes.Buffer
	for i := range lines {
		l := &lines[i]
		fmt.Fprintf(&b, "%s/%s read %d (%.0f/s) written %d pending %s errors %d dropped %d duplicates %d dead letters %d\n",
			l.Pipeline, l.Vertex, l.Read, l.ReadRate, l.Written, count(l.Pending), l.Errors, l.Dropped, l.Duplicates, l.DeadLetters)
	}
	_, _ = v.screen.Write(b.Bytes())
}

func (v *view) drawTable(lines []line) {
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

// column is one of the table. Those that do not fit are left out by their rank, the highest first; 0 is never left out.
type column struct {
	head string
	rank int
	// always: also when all its values are 0.
	always bool
	value  func(l *line) int64
	text   func(l *line) string // instead of value
}

// cell is what a column says of a vertex. A value below 0 is one that is not known.
func (c *column) cell(l *line, number func(int64) string) string {
	if c.text != nil {
		return c.text(l)
	}
	if n := c.value(l); n >= 0 {
		return number(n)
	}
	return "?"
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
	more := 0
	if len(lines)+1 > height {
		more = len(lines) + 2 - height
		lines = lines[:len(lines)-more]
	}
	l := layout{lines: lines, shown: columnsOf(lines), number: humanize.Comma, names: utf8.RuneCountInString("vertex")}
	for i := range lines {
		l.names = max(l.names, utf8.RuneCountInString(lines[i].name()))
	}
	l.fit(width)
	rows := l.rows()
	if more > 0 {
		rows = append(rows, fmt.Sprintf("… and %d more", more))
	}
	return rows
}

// columnsOf leaves out the columns that have nothing to say.
func columnsOf(lines []line) (shown []column) {
	for _, c := range columns {
		keep := c.always
		for i := range lines {
			keep = keep || c.value != nil && c.value(&lines[i]) > 0
		}
		if keep {
			shown = append(shown, c)
		}
	}
	return shown
}

// layout is a table that is made to fit.
type layout struct {
	lines   []line
	shown   []column           // from left to right
	number  func(int64) string // humanize.Comma, or short where that is too wide
	rounded bool               // number is short
	names   int                // characters of the first column

	// cells are the columns as text, each as high as the table and all of its cells as wide as its widest one, with two spaces before. sum is the width of all.
	cells [][]string
	sum   int
}

// fill makes the cells of the columns that are shown.
func (l *layout) fill() {
	l.cells, l.sum = nil, 0
	for _, c := range l.shown {
		cells, wide := []string{c.head}, len(c.head)
		for i := range l.lines {
			cell := c.cell(&l.lines[i], l.number)
			cells, wide = append(cells, cell), max(wide, len(cell))
		}
		for i := range cells {
			cells[i] = strings.Repeat(" ", 2+wide-len(cells[i])) + cells[i]
		}
		l.cells, l.sum = append(l.cells, cells), l.sum+2+wide
	}
}

// fit makes the table narrower until it has the width: numbers are rounded, then columns left out by their rank, then names cut, and in a terminal of a few
// characters all but one column left out.
func (l *layout) fit(width int) {
	const leastName = 12
	for l.fill(); l.names+l.sum > width; l.fill() {
		least := l.leastImportant()
		switch {
		case !l.rounded:
			l.number, l.rounded = short, true
		case least >= 0:
			l.shown = append(l.shown[:least:least], l.shown[least+1:]...)
		default:
			l.names = max(leastName, width-l.sum)
			if l.names+l.sum <= width || len(l.shown) == 1 {
				return
			}
			l.shown = l.shown[:len(l.shown)-1]
		}
	}
}

// leastImportant is the place of the column to leave out first, and -1 if none may be.
func (l *layout) leastImportant() int {
	least := -1
	for i, c := range l.shown {
		if c.rank > 0 && (least < 0 || c.rank > l.shown[least].rank) {
			least = i
		}
	}
	return least
}

func (l *layout) rows() []string {
	rows := make([]string, 0, len(l.lines)+2)
	for i := range len(l.lines) + 1 {
		name := "vertex"
		if i > 0 {
			name = l.lines[i-1].name()
		}
		row := fitName(name, l.names)
		for _, cells := range l.cells {
			row += cells[i]
		}
		rows = append(rows, row)
	}
	return rows
}

// fitName cuts a name to a width, or fills it up with spaces.
func fitName(name string, width int) string {
	n := utf8.RuneCountInString(name)
	if n > width {
		return string([]rune(name)[:width-1]) + "…"
	}
	return name + strings.Repeat(" ", width-n)
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
