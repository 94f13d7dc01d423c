package proxy

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// What bounds a client that means harm must not cost one that means well anything. So nothing is held against an address, which many programs may share;
// a call that got as far as an endpoint costs nothing of the budget, however it ends; and new calls are refused before a connection with open streams is closed.

// warnings are logged at most once a second for all clients together, so that an attacker cannot fill the log.
type warnings struct {
	mu   sync.Mutex
	next time.Time
	left int // unsaid since the last one
}

// warn writes a line about a client that is close to being an attacker, or is one.
func (p *Proxy) warn(text string, attributes ...any) {
	now := time.Now()
	w := &p.warnings
	w.mu.Lock()
	if now.Before(w.next) {
		w.left++
		w.mu.Unlock()
		return
	}
	unsaid := w.left
	w.next, w.left = now.Add(time.Second), 0
	w.mu.Unlock()
	if unsaid > 0 {
		attributes = append(attributes, "similarWarnings", unsaid)
	}
	p.log.Log(context.Background(), slog.LevelWarn, text, attributes...)
}

// refusedForAbuse ends a call whose connection has used up its budget. mu is held.
func (f *front) refusedForAbuse() *ending {
	f.proxy.stats.overBudgetCalls.Add(1)
	if !f.warned {
		f.warned = true
		f.proxy.warn("abuse budget used up, refusing new calls of the connection", "client", f.nc.RemoteAddr().String(), "openStreams", len(f.streams)-1,
			"burst", int(f.budget.burst), "perSecond", int(f.budget.rate))
	}
	e := failure(codes.ResourceExhausted, reasonOverBudget, http.StatusTooManyRequests,
		"the connection has sent more frames that carry nothing than the listener's abuse budget allows (burst %d, %d a second)", int(f.budget.burst), int(f.budget.rate))
	e.unprocessed, e.retry = true, time.Second
	return e
}

// atLimit notes that a connection has as many streams as it may: its client's library keeps further calls waiting, and says nothing. mu is held.
func (f *front) atLimit() {
	f.proxy.stats.full.Add(1)
	if !f.full {
		f.full = true
		f.proxy.warn("connection has as many streams as maxStreams allows, its client keeps further calls waiting", "client", f.nc.RemoteAddr().String(), "maxStreams", int(f.limit))
	}
}
