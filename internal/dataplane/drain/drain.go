// Package drain names the two lifetimes of something that ends in order.
package drain

import "context"

// Context is how long something may take new input, and how long it may work on what it has taken.
//
// Invariant: when both end, Intake ends first. Between the two ends what was taken is finished; what is not finished when Work ends is left unacknowledged.
type Context struct {
	Work, Intake context.Context // the pair is passed as a context is
}
