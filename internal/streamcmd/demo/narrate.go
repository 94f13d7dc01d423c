package demo

import (
	"encoding/json"
	"fmt"

	"github.com/levada-io/levada/internal/streamcmd/jobtext"
	"github.com/levada-io/levada/stream"
)

// workerSaid tells what a worker reports.
func (d *demo) workerSaid(w *child, line string) {
	var e workerEvent
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		return
	}
	if w.taken != "" && e.Kind != stream.EventClaimed {
		d.sayTaken(w)
	}
	switch e.Kind {
	case stream.EventClaimed:
		w.died = e.Died
	case stream.EventFenced:
		d.owner, w.taken = w, takenText(w, e.To)
	case stream.EventDisconnected, stream.EventOpened, stream.EventRetry:
		d.sayConnection(w, &e)
	case stream.EventCommitted:
		d.tellQuarantine()
	case stream.EventLost:
		d.say("%s has lost the job: %s", w.name, jobtext.Shorten(e.Error, 110))
	case stream.EventReleased:
		switch e.State {
		case stream.Ready:
			d.say("%s gives the job back, after record %s", w.name, comma(d.job.Progress.Records))
		case stream.Completed:
			d.say("%s: the job is complete: number and digest are those that the producer names", w.name)
		}
	}
}

// sayTaken prints a claim with the crash state, which is known once the next event has come.
func (d *demo) sayTaken(w *child) {
	if status, err := d.store.Get(d.ctx, d.job.ID); err == nil && status.CrashState.BatchLimit > 0 && d.deaths > 0 {
		w.taken += fmt.Sprintf("; it is careful: %s at once", records(status.CrashState.BatchLimit))
	}
	d.say("%s", w.taken)
	w.taken, d.broken = "", false
}

// takenText is about a worker that has claimed the job, which goes on after a record.
func takenText(w *child, after uint64) string {
	switch {
	case after == 0:
		return w.name + " takes the job and begins"
	case w.died:
		return fmt.Sprintf("%s takes the job, whose owner had died, and goes on after record %s", w.name, comma(after))
	}
	return fmt.Sprintf("%s takes the job and goes on after record %s", w.name, comma(after))
}

// sayConnection prints a disconnect once, and then the new stream.
func (d *demo) sayConnection(w *child, e *workerEvent) {
	switch {
	case e.Kind == stream.EventOpened:
		if d.broken {
			d.say("%s has a new stream, from record %s on: what was committed is not sent again", w.name, comma(e.From))
		}
		d.broken = false
	case d.broken:
	case e.Kind == stream.EventDisconnected:
		d.say("%s: the stream broke: %s", w.name, jobtext.Shorten(e.Error, 110))
		d.broken = true
	case e.Kind == stream.EventRetry:
		d.say("%s tries again: %s", w.name, jobtext.Shorten(e.Error, 110))
	}
}

func records(n int) string {
	if n == 1 {
		return "one record"
	}
	return fmt.Sprintf("%d records", n)
}

// tellQuarantine prints records that were quarantined.
func (d *demo) tellQuarantine() {
	rows, err := d.store.Offsets().Quarantined(d.ctx, d.job.ID, 1000)
	if err != nil {
		return
	}
	for _, q := range rows {
		if d.aside[q.Seq] {
			continue
		}
		d.aside[q.Seq] = true
		switch q.Class {
		case stream.ClassCrash:
			d.say("record %s killed its process %d times alone, %d times in all: it is in quarantine with its payload, and the stream goes on", comma(q.Seq), q.Attempts, d.deaths)
		case stream.ClassPanic:
			d.say("record %s panicked its handler (%s): it is in quarantine with its payload, and the stream goes on", comma(q.Seq), jobtext.Shorten(q.Error, 80))
		default:
			d.say("record %s is in quarantine: %s", comma(q.Seq), jobtext.Shorten(q.Error, 80))
		}
	}
}
