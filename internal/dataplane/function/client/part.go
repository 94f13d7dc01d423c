package client

import (
	"context"
	"sync"
)

// Part gives a caller of MapPart what is done before all of it is, and ends the call early. The zero value does neither.
type Part struct {
	// Until: once it has ended, no further message is given to user code. Those that were not given have the verdict Unbegun.
	Until context.Context
	// Queued is called when the messages have their place before those of later calls; nil: nobody asks. It may be called more than once.
	Queued func()
	// Sending is called when the turn of the messages has come; nil: nobody asks.
	Sending func()

	mu      sync.Mutex
	collect func(visit func(i int, o *Outcome)) // of the call under way; nil if there is none
	index   []int                               // of its messages among those of MapPart; nil: the same
}

// Take visits each message that was answered since the last Take, with its outcome. It may be called at any time, by one goroutine.
func (p *Part) Take(visit func(i int, o *Outcome)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.collect == nil {
		return
	}
	p.collect(func(i int, o *Outcome) {
		if p.index != nil {
			i = p.index[i]
		}
		visit(i, o)
	})
}

// Open is called by who makes the results, when a call begins: collect visits what was answered since it was called last. Close ends that. Both are safe on nil.
func (p *Part) Open(collect func(visit func(i int, o *Outcome))) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.collect = collect
}

// Close is called when the call has ended.
func (p *Part) Close() { p.Open(nil) }

func (p *Part) noteSending() {
	if p != nil && p.Sending != nil {
		p.Sending()
	}
}

// NoteQueued calls Queued. Safe on nil, as the methods below are.
func (p *Part) NoteQueued() {
	if p != nil && p.Queued != nil {
		p.Queued()
	}
}

// Use says which of the messages of MapPart the next call is about; nil: all of them.
func (p *Part) Use(index []int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index = index
}

// Over reports whether nothing more may be begun.
func (p *Part) Over() bool { return p != nil && p.Until != nil && p.Until.Err() != nil }

// Done is closed when nothing more may be begun; nil if that never happens.
func (p *Part) Done() <-chan struct{} {
	if p == nil || p.Until == nil {
		return nil
	}
	return p.Until.Done()
}

// onOver calls f once nothing more may be begun, until stop is called.
func (p *Part) onOver(f func()) (stop func() bool) {
	if p == nil || p.Until == nil {
		return func() bool { return true }
	}
	return context.AfterFunc(p.Until, f)
}

// take visits what was answered and not taken yet. The lock of the call's pipe is held.
func (c *call) take(visit func(i int, o *Outcome)) {
	for i, s := range c.state {
		if s == answered {
			c.state[i] = taken
			visit(i, &c.out[i])
		}
	}
}
