// Package deadletter keeps messages that could not be processed, with the evidence of why, until a person decides.
package deadletter

// Failure is the evidence of why a message could not be processed.
type Failure struct {
	Reason Reason `json:"reason"`
	// Error is one line for people, Stack what the function told of where it was.
	Error string `json:"error"`
	Stack string `json:"stack,omitempty"`
	// ExitCode and Signal are how the process ended, if it did.
	ExitCode int    `json:"exitCode,omitempty"`
	Signal   string `json:"signal,omitempty"`
	// Attempts is how often the message was tried, ConfirmedAlone how often user code failed on it with nothing else in flight.
	Attempts       int `json:"attempts"`
	ConfirmedAlone int `json:"confirmedAlone,omitempty"`
	// Output is the end of what the process wrote to its standard error.
	Output string `json:"output,omitempty"`
}

// Reason says in a word why a message was dead-lettered.
type Reason string

// The reasons.
const (
	Crash    Reason = "crash"    // the process died
	Panic    Reason = "panic"    // user code panicked
	Error    Reason = "error"    // user code returned an error
	Hang     Reason = "hang"     // user code did not return within the processing timeout
	Protocol Reason = "protocol" // the function answered against the contract
	Oversize Reason = "oversize" // a result is larger than a buffer takes
	Nack     Reason = "nack"     // nacked more often than the function allowed
	Retries  Reason = "retries"  // the retry strategy is exhausted
	Source   Reason = "source"   // the source has no content for it

	Malformed Reason = "malformed" // a record of the source that cannot be read; the message has its raw bytes
	Refused   Reason = "refused"   // a sink never takes it
)
