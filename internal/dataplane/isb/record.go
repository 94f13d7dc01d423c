package isb

// Keys of the state bucket; see the package comment.
const (
	KeyTopology = "topology"
	KeySettled  = "settled"
)

// Settled is the note about how the last run ended.
type Settled struct {
	// Settled says that everything a vertex began to write was finished.
	Settled bool `json:"settled"`
	// Except are sources for which that does not hold.
	Except []string `json:"except,omitempty"`
}
