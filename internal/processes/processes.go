// Package processes runs the vertices of pipelines as child processes of this one, several of each where the vertex allows it. It is what levada run --processes does.
//
// # Who does what
//
// This process has the data directory, the broker or the connection to one, and the address of metrics, probes and the API (standalone.Host). It moves no messages. A
// child is levada vertex with one vertex: it finds the others by the broker, shares partitions with its siblings by leases, and would go on without this process. Two
// pipes join them: over one the child reports what this process cannot see (report.go), the other ends when this process does, and the child with it.
//
// # Files
//
//   - run.go: a run from start to end. group.go: the processes of a vertex, and how many. member.go: one of them, started again when it dies. child.go: one life of it.
//   - ending.go: how a pipeline ends by itself, and in which order processes are stopped.
//   - counts.go, metrics.go, probes.go: what is summed or merged over processes.
//   - report.go: what a child says, and how. Used by both sides.
package processes

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/standalone"
)

// Config says what to run.
type Config struct {
	// Run is as for standalone.Run of all vertices in one process. Started and Ended are not called; see below.
	Run standalone.Config
	// Named is how many processes the command line wants, by namespace/pipeline/vertex. The others have what levada scale set, or scale.min of the manifest.
	Named map[string]int
	// Command returns the arguments and the environment of a child, but for what Child holds. The program is that of this process.
	Command func(Child) (args, env []string)
	// Stdin is for the processes of sources, and Stdout for all; nil for none.
	Stdin, Stdout *os.File
	// Line gets what a process writes to its standard error, by the line.
	Line func(process, line string)
	// Started is called once each vertex runs; Ended before Run returns, with what is where, unless nothing had been opened.
	Started func(*Running)
	Ended   func(*standalone.Result)
}

// Child names a process.
type Child struct {
	// Manifest is the file with the one pipeline of the process.
	Manifest, Vertex string
	// Name is that of the process among those of its vertex, the same at each start: the vertex and the number. Label is unique in the run.
	Name, Label string
	// DataDir is that of the process alone.
	DataDir string
	Hosted  standalone.Hosted
	// NATS is where the broker of this process is, and TokenFile has the token for it; empty with one elsewhere.
	NATS, TokenFile string
}

// Running is a run that has started.
type Running struct {
	Address, Durability string
	Pipelines           []Pipeline
	run                 *run
}

// Pipeline is a pipeline that runs.
type Pipeline struct {
	Kind, Namespace, Name string
	Counts                func() []vertex.Stats
}

// Reopen has file sinks look at their files, as SIGHUP to each process does.
func (r *Running) Reopen(context.Context) error { return r.run.hangUp() }

// Times of a run.
const (
	// scaleEvery is how often the wanted number of processes is read.
	scaleEvery = 250 * time.Millisecond
	// emptyEvery is how often buffers are looked at when what writes to them has ended.
	emptyEvery = 50 * time.Millisecond
	// A process that dies is started again at once, and then after a time that doubles from firstDelay to lastDelay until one runs for steadyAfter.
	firstDelay, lastDelay = time.Second, 30 * time.Second
	steadyAfter           = 20 * time.Second
	// maxRefusals is how often in a row a process may say that it cannot start, if others of its vertex have started before. Of the first one once is enough.
	maxRefusals = 5
)

func (cfg Config) withDefaults() Config {
	if cfg.Run.Logger == nil {
		cfg.Run.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Run.DrainTimeout <= 0 {
		cfg.Run.DrainTimeout = standalone.DefaultDrainTimeout
	}
	if cfg.Line == nil {
		cfg.Line = func(string, string) {}
	}
	return cfg
}
