package standalone

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/vertex"
)

// waitingAfter is how long something may take before one line says that it is waited for.
const waitingAfter = 2 * time.Second

// waiting logs one line if what it waits for is not there soon: who is waited for, and why if that is known. Call the function that is returned at the end of
// the wait, with its error.
func waiting(log *slog.Logger, what string, reason func() string, args ...any) (over func(error)) {
	begun := time.Now()
	var mu sync.Mutex
	told, done := false, false
	timer := time.AfterFunc(waitingAfter, func() {
		why := "no answer yet"
		if reason != nil {
			if r := reason(); r != "" {
				why = r
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if !done {
			told = true
			log.Warn("waiting for "+what, append(args, "reason", why, "for", waitingAfter)...)
		}
	})
	return func(err error) {
		timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		done = true
		if told && err == nil {
			log.Info("no longer waiting for "+what, append(args, "took", time.Since(begun).Round(100*time.Millisecond))...)
		}
	}
}

// ready waits until all functions of a vertex are, one line for each that keeps the run from starting.
func (r *runner) ready(ctx context.Context, p *Pipeline, v *vertex.Vertex) error {
	for _, f := range v.Functions() {
		var reason func() string
		if w, ok := any(f).(interface{ Waiting() string }); ok {
			reason = w.Waiting
		}
		over := waiting(r.log, "function", reason, "pipeline", p.Name, "vertex", v.Name, "function", f.Name())
		err := f.Ready(ctx)
		over(err)
		if err != nil {
			return err
		}
	}
	return nil
}
