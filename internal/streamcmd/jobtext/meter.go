package jobtext

import (
	"fmt"
	"time"

	"github.com/levada-io/levada/stream"
)

// Meter measures a rate over the last few seconds.
type Meter struct {
	at      time.Time // of the last update; zero before the first
	records uint64    // what it was then
	rate    float64   // records per second, smoothed over about 3 s
	known   bool      // rate was measured: there were two updates
}

// MeterFrom returns a meter that starts at records: those before it are not counted into the rate.
func MeterFrom(at time.Time, records uint64) Meter { return Meter{at: at, records: records} }

// Update takes the number of records so far, and returns the rate. One that shrinks starts the measurement again.
func (m *Meter) Update(now time.Time, records uint64) float64 {
	if m.at.IsZero() || records < m.records {
		*m = Meter{at: now, records: records}
		return 0
	}
	seconds := now.Sub(m.at).Seconds()
	if seconds < 0.1 {
		return m.rate
	}
	current := float64(records-m.records) / seconds
	if m.known {
		current = m.rate + (current-m.rate)*min(1, seconds/3)
	}
	*m = Meter{at: now, records: records, rate: current, known: true}
	return m.rate
}

// Percent is empty when the stream's size is not known.
func Percent(p stream.Progress) string {
	if p.Size == 0 {
		return "-"
	}
	// Not 100 before the last record.
	return fmt.Sprintf("%d%%", min(p.Records*100/p.Size, 100))
}
