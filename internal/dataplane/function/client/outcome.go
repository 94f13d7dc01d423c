// Package client calls a running server of user code on its Unix sockets: maps, transformers, sinks and sources, over the Numaflow wire contract or in whole
// blocks where the server can. It knows nothing of how the server was started.
//
// A Peer is the server: it is found by the server info in its socket directory. Peer.Open returns a Caller, one stream to it. When the stream ends, each
// message that was sent and not answered is Suspect, or unsent where the server announces what it has in user code and did not announce that one.
package client

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
	// Sink is what a sink answered; nil if it did not.
	Sink *SinkResult
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
	// Broken: it is dead-lettered, with its Failure.
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
