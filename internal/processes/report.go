package processes

import (
	"encoding/json"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/standalone"
)

// report is a line that a child writes. Each field is set in some of them.
type report struct {
	// Address is where metrics and probes of the process are; sent once, when its vertex runs.
	Address string `json:"address,omitempty"`
	// Counts are those of its vertex since the start of the process.
	Counts *vertex.Stats `json:"counts,omitempty"`
	// InputEnded says that its source has ended, and that all it gave is durable behind it.
	InputEnded bool `json:"inputEnded,omitempty"`
	// Result is how the process ended.
	Result *standalone.Result `json:"result,omitempty"`
	// Failed is the error that it ends with.
	Failed string `json:"failed,omitempty"`
}

// The descriptors of a child: where it writes reports, and what ends when its parent does.
const (
	reportsFD = 3
	parentFD  = 4
)

// Reporter is a child's side. Its methods may be called concurrently.
type Reporter struct {
	mu  sync.Mutex
	out *json.Encoder
	to  io.Closer
}

// Attach takes the pipes of a child. gone is called when the parent has ended.
func Attach(gone func()) *Reporter {
	for _, fd := range []int{reportsFD, parentFD} {
		syscall.CloseOnExec(fd) // functions must not keep them open
	}
	reports, parent := os.NewFile(reportsFD, "reports"), os.NewFile(parentFD, "parent")
	go func() { // ends with the process, or with its parent
		_, _ = parent.Read(make([]byte, 1)) // nothing is ever written
		gone()
	}()
	return &Reporter{out: json.NewEncoder(reports), to: reports}
}

// send writes a line. An error means that the parent has ended, and gone is about to be called.
func (r *Reporter) send(line report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.out.Encode(line)
}

// Started says that the vertex runs.
func (r *Reporter) Started(address string) { r.send(report{Address: address}) }

// Counts says how far it is.
func (r *Reporter) Counts(s vertex.Stats) { r.send(report{Counts: &s}) }

// InputEnded says that the source has ended, and that all it gave is durable.
func (r *Reporter) InputEnded() { r.send(report{InputEnded: true}) }

// Ended says how the process ended; result is nil if the start was not complete.
func (r *Reporter) Ended(result *standalone.Result, err error) {
	line := report{Result: result}
	if err != nil {
		line.Failed = err.Error()
	}
	r.send(line)
}
