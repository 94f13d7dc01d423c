package client

import "time"

// settling is a streamed answer that has ended, and that a panic may still make void: a handler that closes its channel while it panics makes the SDK send
// the end of the answer first, and the error of the call after it. So an ended answer counts only after a short while in which the call did not fail.
type settling struct {
	call  *call
	index int
	id    uint64
	ended time.Time
}

// settleFor is how long an ended answer of a map stream waits. It costs latency only: the message's place is free at its end.
const settleFor = 20 * time.Millisecond

// settle queues an answer that has ended. mu is held.
func (p *pipe) settle(s settling) {
	p.settling = append(p.settling, s)
	if len(p.settling) == 1 {
		p.settleTimer = time.AfterFunc(settleFor, p.settled)
	}
}

// settled counts the answers that have waited long enough.
func (p *pipe) settled() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return // the end of the call decides
	}
	if p.panicked() {
		p.settleTimer = time.AfterFunc(settleFor, p.settled) // the call is about to end
		return
	}
	now, n := time.Now(), 0
	for n < len(p.settling) && now.Sub(p.settling[n].ended) >= settleFor {
		p.settling[n].answered()
		n++
	}
	p.settling = p.settling[:copy(p.settling, p.settling[n:])]
	if len(p.settling) > 0 {
		p.settleTimer = time.AfterFunc(settleFor-now.Sub(p.settling[0].ended), p.settled)
	}
}

func (s *settling) answered() {
	s.call.state[s.index] = answered
	if s.call.left--; s.call.left == 0 {
		close(s.call.done)
	}
}

// unsettle decides about the answers of c that wait when the call is over: those count that the function did not have in user code any more,
// where it announces that; the others are void. mu is held.
func (p *pipe) unsettle(c *call, inCode map[uint64]bool) {
	var rest []settling
	for _, s := range p.settling {
		switch {
		case s.call != c:
			rest = append(rest, s)
		case inCode != nil && !inCode[announceUnary|(s.id+1)]:
			c.state[s.index] = answered
			c.left--
		default:
			c.out[s.index] = Outcome{}
		}
	}
	p.settling = rest
}

func (p *pipe) unsettled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.settling) > 0
}
