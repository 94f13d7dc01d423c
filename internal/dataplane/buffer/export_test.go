package buffer

// SpacedBy is how often each of n shards saves its state.
var SpacedBy = spacedBy
