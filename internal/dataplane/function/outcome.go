// Package function calls user code: functions, transformers, sinks and sources in processes of their own, over the Numaflow wire contract or
// in whole blocks where the function can. It starts the processes, starts them again when they die, and finds the messages that kill them.
package function

import (
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/flow"
)

// Outcome is what user code made of one message.
type Outcome struct {
	// Results are the messages it answered with, without ids or positions; EventTime, Ingested and headers are those of the input unless
	// a transformer changed the time. Tags are set. Results tagged to be dropped are left out and counted in Dropped.
	Results []flow.Message
	Dropped int
	Verdict Verdict
	// Delay before a nacked message is given again, and how often at the most (0: no limit). Reason is the user's.
	Delay         time.Duration
	MaxDeliveries int
	Reason        string
	// Failure is set when the verdict is Broken, and says what was in the way so far when it is Suspect.
	Failure *deadletter.Failure
	sink    *sinkResult // what a sink answered
}

// Verdict is what to do with a message.
type Verdict uint8

// The verdicts.
const (
	// Done: the results are the answer.
	Done Verdict = iota
	// Nacked: give it again later.
	Nacked
	// Retry: user code failed and asks for the retry strategy.
	Retry
	// Suspect: it was in user code when that died. Isolate finds out whether it is to blame.
	Suspect
	// Broken: it is put aside, with its Failure.
	Broken
	// Unbegun: it was not given to user code, because the caller said that nothing more shall be begun.
	Unbegun
)

// Tags with a meaning, and the markers of Numaflow's SDKs.
const (
	tagDrop = "U+005C__DROP__"
	tagNack = "U+005C__NACK__"
	tagFail = "U+005C__FAIL__"
)
