package streamcmd

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
)

// jobProgress is one job as its worker sees it.
type jobProgress struct {
	stream.Job
	epoch    uint64
	progress stream.Progress
	attempt  int
	state    string
	ended    time.Time // when it was given back; zero while it is in flight
	retries  int
	err      string
	meter    jobtext.Meter
	since    time.Time // when this attempt began, after record from
	from     uint64
}

// workView shows the jobs of a worker: a table on a terminal, and otherwise a line, a log entry or a JSON object a job, every interval.
type workView struct {
	kind     string
	out      *commandline.Screen
	log      *slog.Logger
	interval time.Duration

	mu       sync.Mutex
	jobs     map[string]*jobProgress // by id; one that ended stays until it was shown, on a terminal for 30 s
	failures int                     // jobs that failed
}

func newWorkView(kind string, out *commandline.Screen, quiet bool, interval time.Duration, jsonLogs, stdoutTaken bool) *workView {
	terminal := commandline.IsTerminal(out.Out)
	switch {
	case quiet:
		kind = "none"
	case kind == "auto" && jsonLogs && !terminal:
		kind = "log" // one kind of line in a log that machines read
	case kind == "auto" && terminal && !stdoutTaken:
		kind = "table"
	case kind == "auto":
		kind = "text"
	}
	return &workView{kind: kind, out: out, interval: max(interval, 100*time.Millisecond), jobs: map[string]*jobProgress{}}
}

// observe is for WorkerConfig.Observe.
func (v *workView) observe(e stream.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	j := v.jobOf(e)
	if e.Epoch < j.epoch {
		return // of an attempt that another took the place of
	}
	switch e.Kind {
	case stream.EventClaimed:
		j.attempt = e.Attempt
	case stream.EventFenced:
		j.progress.Records = e.To
		j.meter = jobtext.MeterFrom(e.Time, e.To)
		j.since, j.from = e.Time, e.To
	case stream.EventCommitted:
		j.progress.Records = e.To
		j.progress.Bytes += e.Bytes
		j.progress.Bad += uint64(e.Bad)
		j.progress.Size = cmp.Or(e.Size, j.progress.Size)
		j.err = ""
	case stream.EventRetry:
		j.retries++
		j.err = e.Err.Error()
	case stream.EventLost:
		j.state, j.ended = "lost", e.Time
	case stream.EventReleased:
		j.state, j.ended = string(e.State), e.Time
		if e.State == stream.Failed {
			v.failures++
		}
	}
}

// jobOf returns the job of an event. A claim begins another attempt, which goes on with the progress of the one before. mu is held.
func (v *workView) jobOf(e stream.Event) *jobProgress {
	j := v.jobs[e.Job.ID]
	if j != nil && e.Kind != stream.EventClaimed {
		return j
	}
	was := j
	j = &jobProgress{Job: e.Job, epoch: e.Epoch, state: "running"}
	if was != nil {
		j.progress, j.meter = was.progress, was.meter
	}
	v.jobs[e.Job.ID] = j
	return j
}

// failed returns how many jobs have failed here.
func (v *workView) failed() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.failures
}

// follow shows until stop is closed, and once more then.
func (v *workView) follow(stop <-chan struct{}) {
	tick := time.NewTicker(v.interval)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			v.show(time.Now())
			return
		case <-tick.C:
			v.show(time.Now())
		}
	}
}

type workLine struct {
	Job      string  `json:"job"`
	Stream   string  `json:"stream"`
	State    string  `json:"state"`
	Records  uint64  `json:"records"`
	Rate     float64 `json:"recordsPerSecond"`
	Size     uint64  `json:"size,omitempty"`
	Bad      uint64  `json:"bad,omitempty"`
	Attempts int     `json:"attempts"`
	Retries  int     `json:"retries,omitempty"`
	Error    string  `json:"error,omitempty"`
	progress stream.Progress
}

// lines returns the jobs in flight and those that ended since the last look, and forgets the latter a while later.
func (v *workView) lines(now time.Time) (lines []workLine) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, j := range v.jobs {
		line := workLine{Job: j.ID, Stream: j.Stream, State: j.state, Records: j.progress.Records, Size: j.progress.Size, Bad: j.progress.Bad,
			Attempts: j.attempt, Retries: j.retries, Error: j.err, progress: j.progress}
		line.Rate = j.meter.Update(now, j.progress.Records)
		if !j.ended.IsZero() {
			// Of a whole attempt, the average says more.
			if seconds := j.ended.Sub(j.since).Seconds(); !j.since.IsZero() && seconds > 0 {
				line.Rate = float64(j.progress.Records-j.from) / seconds
			}
			if v.kind != "table" || now.Sub(j.ended) > 30*time.Second {
				delete(v.jobs, id)
			}
		}
		lines = append(lines, line)
	}
	slices.SortFunc(lines, func(a, b workLine) int { return cmp.Or(cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Job, b.Job)) })
	return lines
}

func (v *workView) show(now time.Time) {
	lines := v.lines(now)
	switch v.kind {
	case "json":
		for i := range lines {
			_ = commandline.WriteJSON(v.out, false, &lines[i])
		}
	case "log":
		for i := range lines {
			l := &lines[i]
			v.log.Info("progress", "job", l.Job, "stream", l.Stream, "state", l.State, "records", l.Records, "records_per_second", int64(l.Rate), "size", l.Size, "bad", l.Bad, "attempts", l.Attempts)
		}
	case "text":
		for i := range lines {
			l := &lines[i]
			fmt.Fprintf(v.out, "%s %s %s: %s records (%s/s, %s), attempt %d, bad %d%s\n", jobtext.ShortID(l.Job), l.Stream, l.State, humanize.Comma(int64(l.Records)),
				humanize.Comma(int64(l.Rate)), jobtext.Percent(l.progress), l.Attempts, l.Bad, errorPart(l.Error))
		}
	case "table":
		v.out.Draw(workTable(lines))
	}
}

// tableRows is how many jobs the table shows: more would not fit a terminal.
const tableRows = 20

func workTable(lines []workLine) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "JOB\tSTREAM\tSTATE\tRECORDS\tRECORDS/S\t%\tBAD\tATTEMPTS\tERROR")
	for i := range lines[:min(len(lines), tableRows)] {
		l := &lines[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", jobtext.ShortID(l.Job), commandline.Printable(l.Stream), l.State, humanize.Comma(int64(l.Records)),
			humanize.Comma(int64(l.Rate)), jobtext.Percent(l.progress), l.Bad, l.Attempts, jobtext.Shorten(l.Error, 60))
	}
	_ = w.Flush()
	if len(lines) == 0 {
		b.WriteString("no job running\n")
	}
	if len(lines) > tableRows {
		fmt.Fprintf(&b, "and %d more\n", len(lines)-tableRows)
	}
	return b.String()
}

func errorPart(text string) string {
	if text == "" {
		return ""
	}
	return ": " + commandline.FirstLine(text)
}
