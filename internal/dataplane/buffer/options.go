package buffer

import (
	"log/slog"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// Options say how a partition behaves. The zero value of a field is its default. A Writer takes no notice of what is about reading.
type Options struct {
	// Name is the name of the partition in logs, metrics and errors: {namespace}-{pipeline}-{vertex}-{partition}.
	Name string
	// MaxLength and UsageLimit are limits.bufferMaxLength (messages) and limits.bufferUsageLimit (percent): writers wait above
	// MaxLength*UsageLimit/100 messages that are not acknowledged. Defaults 30000 and 80.
	MaxLength  int
	UsageLimit int
	// Compression of the blocks written.
	Compression flow.Compression
	// Shared says that other processes write to the partition as well, so that the process that reads it learns at once what they store. It costs a consumer.
	Shared bool
	// IDWindow is how long ids of lanes without positions are remembered; MaxIDs bounds their number. Defaults 5 minutes and 1,000,000.
	IDWindow time.Duration
	MaxIDs   int
	// TrimEvery is how often what nobody needs is removed. Default 2 s.
	TrimEvery time.Duration
	// SaveEvery is how often the state is saved while blocks are being done. What was done since comes again after a crash. Default 200 ms.
	SaveEvery time.Duration
	// Beside, if not nil, is how many shards this process reads now: with many of them, each saves less often.
	Beside func() int
	// MaxInFlight bounds the blocks between Read and Done. Default 1024.
	MaxInFlight int
	// OnCorrupt is asked what to do when stored data is not what was written, or missing (seq is the first one concerned, data what is there).
	// nil result: go on without it. Otherwise Read returns the error, again and again.
	OnCorrupt func(seq uint64, data []byte, err error) error
	// Metrics is called with what happens; nil for none.
	Metrics Metrics
	Logger  *slog.Logger
}

// Metrics are what a partition tells about itself. Calls are quick and concurrent.
type Metrics interface {
	// Wrote is called once a block is durable, with the time since its Write began. WriteFailed is called for each attempt that failed; it is repeated.
	Wrote(messages int, took time.Duration)
	WriteFailed(err error)
	// Full is called when a writer begins to wait for room.
	Full()
	// Acked is called when a block is done.
	Acked(took time.Duration)
	// Corrupt is called for an entry that is not what was written, Gap for blocks that are missing.
	Corrupt()
	Gap(blocks int)
	// Duplicates is called for messages that were dropped because they were known.
	Duplicates(messages int)
}

// limit is how many pending messages make writers wait.
func (o Options) limit() int { return max(1, o.MaxLength*o.UsageLimit/100) }

// withDefaults fills in every field, so that nothing behind it asks whether one is set.
func (o Options) withDefaults() Options {
	if o.MaxLength <= 0 {
		o.MaxLength = 30000
	}
	if o.UsageLimit <= 0 {
		o.UsageLimit = 80
	}
	if o.IDWindow <= 0 {
		o.IDWindow = 5 * time.Minute
	}
	if o.MaxIDs <= 0 {
		o.MaxIDs = 1_000_000
	}
	if o.TrimEvery <= 0 {
		o.TrimEvery = 2 * time.Second
	}
	if o.SaveEvery <= 0 {
		o.SaveEvery = 200 * time.Millisecond
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 1024
	}
	if o.OnCorrupt == nil {
		o.OnCorrupt = func(_ uint64, _ []byte, err error) error { return err }
	}
	if o.Metrics == nil {
		o.Metrics = noMetrics{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// noMetrics counts nothing.
type noMetrics struct{}

func (noMetrics) Wrote(int, time.Duration) {}
func (noMetrics) WriteFailed(error)        {}
func (noMetrics) Full()                    {}
func (noMetrics) Acked(time.Duration)      {}
func (noMetrics) Corrupt()                 {}
func (noMetrics) Gap(int)                  {}
func (noMetrics) Duplicates(int)           {}
