package stream

import "context"

// hands count what a process has in handlers: the records of any number of jobs, or those of one that is suspected of killing its process.
// With nothing beside a suspect, a death while it is in hand cannot be that of another.
type hands struct {
	turn chan struct{} // held by the suspect that is in hand, or comes next
	busy chan struct{} // holds one for each job with records in hand; a suspect fills it
}

func newHands(jobs int) *hands {
	return &hands{turn: make(chan struct{}, 1), busy: make(chan struct{}, jobs)}
}

// takeHand waits until the job may hand records to its handler; alone, with nothing beside them.
func (r *run) takeHand(alone bool) error {
	h := r.hands
	n := 1
	if alone {
		if err := r.enter(h.turn); err != nil {
			return err
		}
		n = cap(h.busy)
	}
	for i := range n {
		if err := r.enter(h.busy); err != nil {
			h.leave(i, alone)
			return err
		}
	}
	r.mu.Lock()
	r.holds, r.alone = n, alone
	r.mu.Unlock()
	return nil
}

// giveHand ends takeHand. For a handler that does not come back, the watchdog does it before.
func (r *run) giveHand() {
	r.mu.Lock()
	n, alone := r.holds, r.alone
	r.holds, r.alone = 0, false
	r.mu.Unlock()
	r.hands.leave(n, alone)
}

func (h *hands) leave(n int, alone bool) {
	for range n {
		<-h.busy
	}
	if alone {
		<-h.turn
	}
}

func (r *run) enter(c chan struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	default:
	}
	select {
	case c <- struct{}{}:
		return nil
	case <-r.own.Done():
		return context.Cause(r.own)
	case <-r.stop.Done():
		return errStopping
	}
}
