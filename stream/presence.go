package stream

import (
	"context"
	"sync"
)

// A worker ends the leases of the processes that were in its pod before and are dead, so that a container that restarts takes its jobs back at
// once. Whether one of them is dead must be certain, since others may live beside it: a second worker in the process, a second process in
// the container, a sidecar. All of them have the same POD_UID. So each process holds an abstract Unix socket named after its
// incarnation, which containers of one pod see of each other (they share the network namespace), and which the kernel removes with the process.

// newIncarnation makes a name for this process. One of version 8 promises that the socket is there as long as the process is.
func newIncarnation() string {
	id := []byte(NewID())
	id[14] = '8'
	if !announce(string(id)) {
		return NewID()
	}
	return string(id)
}

// announced reports whether the process of that name holds a socket while it lives.
func announced(incarnation string) bool { return len(incarnation) == 36 && incarnation[14] == '8' }

// living counts the workers of this process that run, by incarnation.
var living = struct {
	sync.Mutex
	workers map[string]int
}{workers: map[string]int{}}

// live registers a running worker, until leave is called.
func live(incarnation string) (leave func()) {
	if incarnation == "" {
		return func() {}
	}
	living.Lock()
	defer living.Unlock()
	living.workers[incarnation]++
	return func() {
		living.Lock()
		defer living.Unlock()
		if living.workers[incarnation]--; living.workers[incarnation] == 0 {
			delete(living.workers, incarnation)
		}
	}
}

func livesHere(incarnation string) bool {
	living.Lock()
	defer living.Unlock()
	return living.workers[incarnation] > 0
}

// isDead reports whether it is certain that the owner is dead.
func (w *Worker) isDead(o Owner) bool {
	switch {
	case livesHere(o.Incarnation):
		return false
	case w.config.SingleProcess:
		return true
	default:
		return o.PodUID != "" && o.PodUID == w.config.Owner.PodUID && announced(o.Incarnation) && !answers(o.Incarnation)
	}
}

// takeBack ends the leases of owners that are certainly dead.
func (w *Worker) takeBack(ctx context.Context) (jobs int, err error) {
	owners, err := w.config.Store.Owners(ctx)
	if err != nil {
		return 0, err
	}
	for _, o := range owners {
		if !w.isDead(o) {
			continue
		}
		dead := ExpireFilter{PodUID: o.PodUID, Incarnation: o.Incarnation}
		if o.PodUID == "" && o.Incarnation == "" { // the caller names no process, so SingleProcess covers all of them
			dead = ExpireFilter{All: true, ExceptIncarnation: w.config.Owner.Incarnation}
		}
		n, err := w.config.Store.Expire(ctx, dead)
		jobs += n
		if err != nil {
			return jobs, err
		}
	}
	return jobs, nil
}
