package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/standalone"
)

// view shows a run: a table that is drawn over on a terminal, and otherwise a line or a JSON object a vertex, every interval.
type view struct {
	kind     string
	out      io.Writer
	interval time.Duration
	drawn    int // lines of the table on the screen
	before   map[string]vertex.Stats
	at       time.Time
}

func newView(kind string, out io.Writer, quiet bool, interval time.Duration, jsonLogs, sharesTerminal bool) (*view, error) {
	switch {
	case quiet:
		kind = "none"
	case kind == "auto" && jsonLogs && !commandline.IsTerminal(out):
		kind = "text"
	case kind == "auto" && commandline.IsTerminal(out) && !sharesTerminal && os.Getenv("NO_COLOR") == "":
		kind = "table"
	case kind == "auto":
		kind = "text"
	case kind == "table" || kind == "text" || kind == "json":
	default:
		return nil, fmt.Errorf("--output is auto, table, text or json, not %q", kind)
	}
	return &view{kind: kind, out: out, interval: max(interval, 100*time.Millisecond), before: map[string]vertex.Stats{}, at: time.Now()}, nil
}

// start says what runs, and where.
func (v *view) start(r *standalone.Running, dataDir string, took time.Duration) {
	switch v.kind {
	case "none":
		return
	case "json":
		_ = json.NewEncoder(v.out).Encode(map[string]any{"event": "started", "address": r.Address, "data": dataDir, "durability": r.Durability, "tookMs": took.Milliseconds()})
		return
	}
	for _, p := range r.Pipelines {
		fmt.Fprintf(v.out, "%s %s/%s\n", p.Kind, p.Namespace, p.Name)
		w := tabwriter.NewWriter(v.out, 0, 0, 2, ' ', 0)
		for _, s := range p.Stats(context.Background()) {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Name, s.Kind, s.Runs)
		}
		_ = w.Flush()
	}
	fmt.Fprintf(v.out, "metrics  http://%s/metrics  (also /livez /readyz)\ndata     %s: %s\nstarted in %v; Ctrl-C drains and stops\n\n", r.Address, dataDir, r.Durability, took.Round(time.Millisecond))
}

// follow shows rates until ctx ends.
func (v *view) follow(ctx context.Context, r *standalone.Running) {
	if v.kind == "none" {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(v.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			v.show(r)
			return
		case <-tick.C:
			v.show(r)
		}
	}
}

type line struct {
	Pipeline    string  `json:"pipeline"`
	Vertex      string  `json:"vertex"`
	Read        int64   `json:"read"`
	Written     int64   `json:"written"`
	ReadRate    float64 `json:"readPerSecond"`
	WrittenRate float64 `json:"writtenPerSecond"`
	Pending     int64   `json:"pending"`
	Errors      int64   `json:"errors"`
	Dropped     int64   `json:"dropped"`
	DeadLetters int64   `json:"deadLetters"`
	LatencyMs   float64 `json:"latencyMs,omitempty"`
}

func (v *view) lines(r *standalone.Running) (lines []line) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	seconds := max(time.Since(v.at).Seconds(), 0.001)
	v.at = time.Now()
	for _, p := range r.Pipelines {
		for _, s := range p.Stats(ctx) {
			key := p.Name + "/" + s.Name
			b := v.before[key]
			l := line{
				Pipeline: p.Name, Vertex: s.Name, Read: s.In, Written: s.Out, Pending: s.Pending, Errors: s.Errors, Dropped: s.Dropped, DeadLetters: s.DeadLetters,
				ReadRate: float64(s.In-b.In) / seconds, WrittenRate: float64(s.Out-b.Out) / seconds,
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
	switch v.kind {
	case "json":
		e := json.NewEncoder(v.out)
		for i := range lines {
			_ = e.Encode(&lines[i])
		}
	case "text":
		for i := range lines {
			l := &lines[i]
			fmt.Fprintf(v.out, "%s/%s read %d (%.0f/s) written %d pending %s errors %d dropped %d dead letters %d\n",
				l.Pipeline, l.Vertex, l.Read, l.ReadRate, l.Written, count(l.Pending), l.Errors, l.Dropped, l.DeadLetters)
		}
	case "table":
		var b strings.Builder
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "vertex\tread\tread/s\twritten\tpending\tlatency\terrors\tdropped\tdead\t")
		for i := range lines {
			l := &lines[i]
			latency := "-"
			if l.LatencyMs > 0 {
				latency = fmt.Sprintf("%.1f ms", l.LatencyMs)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t\n", l.Vertex, humanize.Comma(l.Read), humanize.Comma(int64(l.ReadRate)), humanize.Comma(l.Written),
				count(l.Pending), latency, l.Errors, l.Dropped, l.DeadLetters)
		}
		_ = w.Flush()
		if v.drawn > 0 {
			fmt.Fprintf(v.out, "\x1b[%dA\x1b[J", v.drawn) // up, and clear what is below
		}
		v.drawn = strings.Count(b.String(), "\n")
		_, _ = io.WriteString(v.out, b.String())
	}
}

// end says how it ended.
func (v *view) end(took time.Duration, err error) {
	switch v.kind {
	case "none":
	case "json":
		_ = json.NewEncoder(v.out).Encode(map[string]any{"event": "ended", "ok": err == nil, "tookMs": took.Milliseconds()})
	default:
		if err == nil {
			fmt.Fprintf(v.out, "ended after %v: nothing is left in hand\n", took.Round(time.Millisecond))
		}
	}
}

func count(n int64) string {
	if n < 0 {
		return "?"
	}
	return humanize.Comma(n)
}
