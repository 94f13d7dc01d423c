package isb

import "github.com/levada-io/levada/internal/dataplane/ownership"

// Keys about the number of processes of each vertex, of a pipeline whose processes another one starts. KeyWanted is changed by compare-and-set only; KeyRunning is written by
// the holder of RunLease alone. What they hold is up to package standalone.
const (
	KeyWanted  = "processes.wanted"
	KeyRunning = "processes.running"
)

// RunLease is the record of the process that starts those of the vertices. Beside it the vertices have leases of their own, as ever.
func RunLease(s State) ownership.Store { return lease{s, "processes.owner"} }
