package forward

import (
	"context"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// Output is where a processor writes.
type Output interface {
	// Begin prepares to write an emission, which is the output's until the write is over. It does not wait.
	Begin(e *Emission) PendingWrite
}

// PendingWrite is an emission on its way into an output. Submit and then Wait are called, once each, and Wait not after an error of Submit.
type PendingWrite interface {
	// Submit starts the writing. The emissions of a lane are submitted one after the other, and as long as the stages are quick in the order of their positions.
	Submit(ctx context.Context) error
	// Wait returns once all is durable, but for what is left in Emission.Later: messages that are to be tried again, or that are never taken.
	Wait(ctx context.Context) error
}

// Emission is messages of one lane on their way out, or what stages made of them.
type Emission struct {
	// Origin identifies what is written. That of a work, or a lane of the processor's own.
	Origin
	// In are the messages, with positions within Lo..Hi, and Out what became of them: for each its results, under the position of the message. All are Done.
	// Out is nil if the messages themselves go on.
	In  []flow.Message
	Out []function.Outcome
	// Stage made the results: their ids say so.
	Stage string
	// Lo to Hi are the positions covered, Spans which of them where it is not all.
	Lo, Hi uint64
	Spans  []flow.Span
	// Floor is what may be promised about the lane; asked for when it is needed.
	Floor func() uint64
	// Until ends when nothing new shall be begun: an output that waits to try something again leaves it in Later. nil: never.
	Until context.Context
	// InPlace: what can be tried again is tried until it is done, and nothing overtakes it.
	InPlace bool
	// Again: In are results that the output left in Later, for the sink To if that is not empty, and Again is how often each was tried, by id.
	Again map[string]int
	To    function.Role
	// Later are messages that the output could not deliver.
	Later []Later

	work *Work // nil if the messages are not those of a work
	// index are the places in work.Messages that are covered, ascending. Those of In, but for an emission with Again, which may hold several results of one message.
	index []int
}

// Later is a message to be tried again, or to be dead-lettered.
type Later struct {
	Message flow.Message
	// Made says that the message is a result of the stages: it goes to the output again, and through no stage. To is the sink that it is for.
	Made    bool
	To      function.Role
	Outcome function.Outcome
	index   int
	// Attempts is how often it was tried, Due when it is tried next.
	Attempts int
	Due      time.Time
}

// cover sets the positions of an emission to those of messages of its work.
func (e *Emission) cover() {
	e.Spans = e.work.spans(e.index)
	e.Lo, e.Hi = e.work.Lo, e.work.Hi
	if len(e.Spans) > 0 {
		e.Lo, e.Hi = e.Spans[0].Lo, e.Spans[len(e.Spans)-1].Hi
	}
	if len(e.Spans) == 1 {
		e.Spans = nil
	}
}

// single is the emission of the k-th message alone.
func (e *Emission) single(k int) *Emission {
	one := &Emission{Origin: e.Origin, In: e.In[k : k+1], Stage: e.Stage, Floor: e.Floor, Until: e.Until, Lo: e.Lo, Hi: e.Hi, work: e.work}
	if e.Out != nil {
		one.Out = e.Out[k : k+1]
	}
	if e.work != nil {
		one.index = e.index[k : k+1]
		one.cover()
		return one
	}
	if k > 0 {
		one.Lo = e.In[k].Pos
	}
	if k+1 < len(e.In) {
		one.Hi = e.In[k+1].Pos - 1
	}
	return one
}

// head is the header of a block that covers lo..hi of an emission. It promises nothing about event times: nothing computes bounds yet.
func (e *Emission) head(lo, hi uint64) flow.Block {
	b := flow.Block{Lane: e.Lane, Lo: lo, Hi: hi, ByID: e.ByID, Watermark: flow.NoWatermark}
	for _, s := range e.Spans {
		if s.Hi < lo || s.Lo > hi {
			continue
		}
		b.Cover = append(b.Cover, flow.Span{Lo: max(s.Lo, lo), Hi: min(s.Hi, hi)})
	}
	if len(b.Cover) == 1 && b.Cover[0] == (flow.Span{Lo: lo, Hi: hi}) {
		b.Cover = nil
	}
	return b
}

// results are the messages that go out, with their ids.
func (e *Emission) results() []flow.Message {
	nameAll(e.In, e.IDPrefix)
	if e.Out == nil {
		return e.In
	}
	var messages []flow.Message
	for i := range e.Out {
		for j := range e.Out[i].Results {
			m := e.Out[i].Results[j]
			m.Pos = e.In[i].Pos
			m.ID = flow.ChildID(e.In[i].ID, e.Stage, j)
			messages = append(messages, m)
		}
	}
	return messages
}

// block is what a sink gets: messages of the emission, under the positions of its input.
func (e *Emission) block(messages []flow.Message, whole bool) *flow.Block {
	b := e.head(e.Lo, e.Hi)
	b.Floor, b.Messages = e.Floor(), messages
	if whole {
		return &b
	}
	// A part of the emission covers just what it holds.
	b.Cover = nil
	for i := range messages {
		if p := messages[i].Pos; len(b.Cover) == 0 || b.Cover[len(b.Cover)-1].Hi != p {
			b.Cover = append(b.Cover, flow.Span{Lo: p, Hi: p})
		}
	}
	b.Lo, b.Hi = messages[0].Pos, messages[len(messages)-1].Pos
	return &b
}
