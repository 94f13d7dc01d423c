package stream

import "context"

// handlerSlots bound what a process has in handlers: the records of any number of jobs, or those of one that is suspected of killing its process.
// With nothing beside a suspect, a crash while it is in flight cannot be caused by another.
type handlerSlots struct {
	turn chan struct{} // held by the suspect that is in flight, or is next
	busy chan struct{} // holds one for each job with records in flight; a suspect fills it
}

func newHandlerSlots(jobs int) *handlerSlots {
	return &handlerSlots{turn: make(chan struct{}, 1), busy: make(chan struct{}, jobs)}
}

// acquireHandler waits until the job may call its handler; alone: until no other job of the process is in one.
func (r *run) acquireHandler(alone bool) error {
	h := r.handlers
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
	r.heldSlots, r.alone = n, alone
	r.mu.Unlock()
	return nil
}

// releaseHandler ends acquireHandler. For a handler that does not return, the watchdog does it before.
func (r *run) releaseHandler() {
	r.mu.Lock()
	n, alone := r.heldSlots, r.alone
	r.heldSlots, r.alone = 0, false
	r.mu.Unlock()
	r.handlers.leave(n, alone)
}

func (h *handlerSlots) leave(n int, alone bool) {
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
	case <-r.leaseCtx.Done():
		return context.Cause(r.leaseCtx)
	case <-r.stopCtx.Done():
		return errStopping
	}
}
