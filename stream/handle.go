package stream

import (
	"cmp"
	"time"
)

// HandleOptions are limits of one stream, in place of the worker's. Zero means the worker's.
type HandleOptions struct {
	// MaxJobs is how many jobs of the stream are worked on at once, within the worker's MaxJobs. Zero: no limit of its own.
	MaxJobs int
	// MaxInFlight, MaxRecord, CommitRecords, CommitBytes, HandlerTimeout, NoProgress, DependencyWait, MaxCrashes and MaxBad are as in WorkerConfig.
	MaxInFlight    int
	MaxRecord      int
	CommitRecords  int
	CommitBytes    int
	HandlerTimeout time.Duration
	NoProgress     time.Duration
	DependencyWait time.Duration
	MaxCrashes     int
	MaxBad         int
}

func (o HandleOptions) validate(stream string) error {
	return checkLimits("HandleOptions of stream "+stream+": HandleOptions", bound{"MaxJobs", o.MaxJobs}, bound{"MaxInFlight", o.MaxInFlight}, bound{"MaxRecord", o.MaxRecord},
		bound{"CommitRecords", o.CommitRecords}, bound{"CommitBytes", o.CommitBytes}, bound{"HandlerTimeout", o.HandlerTimeout}, bound{"MaxCrashes", o.MaxCrashes}, bound{"MaxBad", count(o.MaxBad)})
}

// configOf returns the worker's configuration with the limits of a stream.
func (w *Worker) configOf(stream string) WorkerConfig {
	c, o := w.config, w.options[stream]
	c.MaxInFlight = cmp.Or(o.MaxInFlight, c.MaxInFlight)
	c.MaxRecord = cmp.Or(o.MaxRecord, c.MaxRecord)
	c.CommitRecords = cmp.Or(o.CommitRecords, c.CommitRecords)
	c.CommitBytes = cmp.Or(o.CommitBytes, c.CommitBytes)
	c.HandlerTimeout = cmp.Or(o.HandlerTimeout, c.HandlerTimeout)
	c.NoProgress = cmp.Or(o.NoProgress, c.NoProgress)
	c.DependencyWait = cmp.Or(o.DependencyWait, c.DependencyWait)
	c.MaxCrashes = cmp.Or(o.MaxCrashes, c.MaxCrashes)
	c.MaxBad = cmp.Or(o.MaxBad, c.MaxBad)
	return c
}

// reserve returns the streams that have room for another job, and how many jobs a claim of any of them may give: at most slots. That many
// are counted as busy in each stream with a limit, until settleReserved.
func (w *Worker) reserve(slots int) (streams []string, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	most = slots
	for _, name := range w.streams() {
		if limit := w.options[name].MaxJobs; limit > 0 {
			room := limit - w.busy[name]
			if room <= 0 {
				continue
			}
			most = min(most, room)
		}
		streams = append(streams, name)
	}
	if len(streams) == 0 {
		return nil, 0
	}
	for _, name := range streams {
		w.busy[name] += most
	}
	return streams, most
}

// settleReserved counts only the jobs that were claimed as busy.
func (w *Worker) settleReserved(streams []string, most int, claimed []Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range streams {
		w.busy[name] -= most
	}
	for i := range claimed {
		w.busy[claimed[i].Stream]++
	}
}

func (w *Worker) leaveStream(stream string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy[stream]--
}

func (w *Worker) hasRoom(stream string) bool {
	if stream == "" {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	limit := w.options[stream].MaxJobs
	return limit == 0 || w.busy[stream] < limit
}
