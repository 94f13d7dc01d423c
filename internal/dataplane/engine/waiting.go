package engine

import (
	"log/slog"
	"sync"
	"time"
)

// waitingAfter is how long something may take before one line says that it is waited for.
const waitingAfter = 2 * time.Second

// Waiting logs one line if the wait that begins now is long: for what, and the reason if it is known. The caller calls over at the end of the wait, with its error.
func Waiting(log *slog.Logger, what string, reason func() string, args ...any) (over func(error)) {
	begun := time.Now()
	var mu sync.Mutex // guards told and done: the timer may fire while the wait ends
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
